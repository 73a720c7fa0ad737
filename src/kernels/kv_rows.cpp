#include "kernels/kv_rows.h"

#include "core/quant.h"

namespace hadal {

std::int64_t KvRowFormat::data_bytes() const {
  switch (kind) {
    case KvRowKind::f32:
      return width * 4;
    case KvRowKind::fp8_mixed:
      return (width - rope) + rope * 2;
    case KvRowKind::fp4:
      return width / 2;
  }
  return 0;
}

std::int64_t KvRowFormat::scale_bytes() const {
  switch (kind) {
    case KvRowKind::f32:
      return 0;
    case KvRowKind::fp8_mixed: {
      const std::int64_t scales = (width - rope + kKvQuantBlock - 1) / kKvQuantBlock;
      return (scales + 7) / 8 * 8;
    }
    case KvRowKind::fp4:
      return width / kFp4Block.cols;
  }
  return 0;
}

}  // namespace hadal
