// Any text as config.json: refused with an Error, or a config that survives being written and read
// again and whose layout can be listed.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/error.h"
#include "model/weight_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace hadal;
  try {
    const model::Config c =
        model::parse_config({reinterpret_cast<const char*>(data), size}, "fuzz");
    const model::Config again = model::parse_config(model::to_json(c), "fuzz again");
    HADAL_CHECK(again.layers == c.layers);
    HADAL_CHECK(model::to_json(again) == model::to_json(c));
    HADAL_CHECK(c.layers.size() ==
                static_cast<std::size_t>(c.num_hidden_layers + c.num_nextn_predict_layers));
    // Large ones are bounded too, but not at the speed a fuzzer needs.
    if (c.layers.size() * static_cast<std::size_t>(c.n_routed_experts) > 4096) return 0;
    for (const model::ExpectedWeight& w : model::expected_weights(c)) {
      HADAL_CHECK(w.shape.numel() > 0);
    }
  } catch (const Error& e) {
    if (std::strstr(e.what(), "fuzz:") == nullptr) throw;
  }
  return 0;
}
