// A tokenizer to build with, and documents as a reader gives them.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/thread_pool.h"
#include "dataset/document_reader.h"
#include "io/bpe_trainer.h"
#include "io/tokenizer.h"
#include "io/tokenizer_writer.h"
#include "support/failing_file_system.h"

namespace hadal::test {

// tokenizer.json of bytes, control tokens and a few merges; ".\n" is one of them.
inline const std::string& small_tokenizer_json() {
  static const std::string kJson = [] {
    std::string text;
    for (int i = 0; i < 30; ++i) text += "The cat and the dog. They sat.\nAnd then (so).\n";
    ThreadPool pool(1);
    io::PieceCounter counter(io::deepseek_pretokenizer());
    const std::string_view view = text;
    counter.add(std::span(&view, 1), pool);
    return io::write_tokenizer_json(io::train_bpe(counter.take(), {.n_tokens = 290}));
  }();
  return kJson;
}

inline io::Tokenizer small_tokenizer() {
  return io::Tokenizer::parse(small_tokenizer_json());
}

// The sentence of the error that `action` throws.
inline std::string error_of(const std::function<void()>& action, ErrorCode code) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

inline dataset::RawDocument text_document(std::string text) {
  dataset::RawDocument document;
  document.text = std::move(text);
  return document;
}

inline dataset::RawDocument json_line(std::string line, std::int64_t number = 1) {
  dataset::RawDocument document;
  document.text = std::move(line);
  document.kind = dataset::SourceKind::jsonl;
  document.line = number;
  return document;
}

}  // namespace hadal::test
