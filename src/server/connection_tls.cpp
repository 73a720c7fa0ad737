#include "server/connection_inl.h"

namespace hadal::server {

std::shared_ptr<Connection> make_tls_connection(boost::asio::ip::tcp::socket socket,
                                                boost::asio::ssl::context& tls,
                                                std::shared_ptr<ConnectionContext> context) {
  using Tls = boost::asio::ssl::stream<boost::asio::ip::tcp::socket>;
  return std::make_shared<StreamConnection<Tls>>(std::move(context), std::move(socket), tls);
}

}  // namespace hadal::server
