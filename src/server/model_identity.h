// What makes a model the same one: the lines of its fingerprint, and how two of them differ.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "core/digest.h"
#include "core/file.h"

namespace hadal::server {

// How much of the weights a digest reads: at most n x nbytes.
struct WeightSamples {
  std::size_t n = 2048;
  std::size_t nbytes = 2048;  // of each
};

// SHA-256 of the names, dtypes and shapes of all tensors in the directory's .safetensors files, and
// of samples of their bytes. Independent of how tensors are spread over files, and of the files'
// names. Weights that take no more than the samples are read whole.
//
// Samples are taken by kind: tensors whose names differ in numbers only (one linear of all layers,
// one matrix of all experts) share their samples, evenly spaced over all of their bytes, and kinds
// that need few leave the rest to others. So training, which moves nearly every value of the
// tensors it touches, shows if it touched any kind in more than a few places. What may not show is
// one expert among thousands, or a few values in a tensor, changed by hand; whoever does that and
// keeps the journal must give the model another config.json.
// Throws as SafetensorsFile::open.
[[nodiscard]] Sha256Digest weights_digest(FileSystem& fs, const Path& directory,
                                          const WeightSamples& samples = {});

// Lines "word value" that name the build, the numerics, the weights, the config and the tokenizer.
[[nodiscard]] std::string fingerprint_text(FileSystem& fs, const Path& directory,
                                           const std::string& numerics, const std::string& version);

// How the model of fingerprint `then` differs from that of `now`, for people: "weights 12ab then,
// 34cd now". Empty when tokens of the one may be continued by the other: another build of hadal
// draws from the same distribution (though perhaps not the same tokens).
[[nodiscard]] std::string model_difference(std::string_view then, std::string_view now);
// Whether the tokens of `then` are text to the tokenizer of `now`.
[[nodiscard]] bool same_tokenizer(std::string_view then, std::string_view now);

}  // namespace hadal::server
