// KV rows in pages, on the host and the same bytes on the GPU.
#pragma once

#include "cuda/support.h"
#include "kernels/kv_rows.h"

namespace hadal::test {

// Room for `n_rows` rows in pages of a few.
class StoredRows {
 public:
  StoredRows(const KvRowFormat& format, std::int64_t n_rows, std::int64_t rows_per_page) {
    for (std::int64_t row = 0; row < n_rows; row += rows_per_page) {
      host_pages_.push_back(Tensor::zeros({rows_per_page * format.row_bytes()}, DType::u8));
      host_.push_back(host_pages_.back().bytes());
    }
    format_ = format;
    rows_per_page_ = rows_per_page;
  }
  [[nodiscard]] PagedRows host() const { return {format_, host_, rows_per_page_}; }
  [[nodiscard]] PagedRows device() const { return {format_, device_, rows_per_page_}; }
  // Sends what the host has.
  template <class ToDevice>
  void send(ToDevice&& to_device) {
    device_pages_.clear(), device_.clear();
    for (const Tensor& page : host_pages_) {
      device_pages_.push_back(to_device(page));
      device_.push_back(device_pages_.back().bytes());
    }
  }

 private:
  KvRowFormat format_;
  std::int64_t rows_per_page_ = 1;
  std::vector<Tensor> host_pages_, device_pages_;
  std::vector<std::byte*> host_, device_;
};

}  // namespace hadal::test
