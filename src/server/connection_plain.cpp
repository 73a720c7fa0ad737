#include "server/connection_inl.h"

namespace hadal::server {

std::shared_ptr<Connection> make_plain_connection(boost::asio::ip::tcp::socket socket,
                                                  std::shared_ptr<ConnectionContext> context) {
  return std::make_shared<StreamConnection<boost::asio::ip::tcp::socket>>(std::move(context),
                                                                          std::move(socket));
}

}  // namespace hadal::server
