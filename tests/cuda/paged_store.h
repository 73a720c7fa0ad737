// Pages of KV rows on the host and a copy of them on the device.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/support.h"
#include "kernels/kv_rows.h"

namespace hadal::test {

// The pages lie in reverse order with 64 bytes or more between them, so that whoever counts on
// their being one block is seen.
struct PagedStore {
  KvRowFormat format;
  std::int64_t rows_per_page = 1;
  Tensor host, device;  // [n_pages, page_bytes] u8
  std::vector<std::byte*> host_pages, device_pages;

  [[nodiscard]] PagedRows on_host() const { return {format, host_pages, rows_per_page}; }
  [[nodiscard]] PagedRows on_device() const { return {format, device_pages, rows_per_page}; }
};

inline PagedStore paged_store(const KvRowFormat& format, std::int64_t n_rows,
                              std::int64_t rows_per_page) {
  PagedStore s;
  s.format = format, s.rows_per_page = rows_per_page;
  const std::int64_t n_pages = std::max<std::int64_t>(1, (n_rows - 1) / rows_per_page + 1);
  const std::int64_t page_bytes = (rows_per_page * format.row_bytes() + 127) / 64 * 64;
  s.host = Tensor::empty({n_pages, page_bytes}, DType::u8);
  std::fill_n(s.host.bytes(), s.host.nbytes(), std::byte{0x35});
  for (std::int64_t i = n_pages; i-- > 0;) s.host_pages.push_back(s.host.bytes() + i * page_bytes);
  return s;
}

class PagedTest : public CudaTest {
 protected:
  void send(PagedStore& s) {
    s.device = to_device(s.host);
    s.device_pages.clear();
    for (const std::byte* page : s.host_pages) {
      s.device_pages.push_back(s.device.bytes() + (page - s.host.bytes()));
    }
  }
  // A store on both sides whose rows [0, n) are x [n, width], rounded on the CPU.
  PagedStore stored(const Tensor& x, const KvRowFormat& format, std::int64_t rows_per_page) {
    PagedStore s = paged_store(format, x.dim(0), rows_per_page);
    const StoreRange all{0, x.dim(0), s.on_host()};
    run_cpu(kStoreRows, x.dtype(), {.x = x, .ranges = {&all, 1}});
    send(s);
    return s;
  }
};

inline const char* name_of(KvRowKind kind) {
  return kind == KvRowKind::f32 ? "f32" : kind == KvRowKind::fp4 ? "fp4" : "fp8_mixed";
}

}  // namespace hadal::test
