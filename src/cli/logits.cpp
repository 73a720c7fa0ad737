#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "cache/paged_kv.h"
#include "cli/common.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/subcommands.h"
#include "core/error.h"
#include "io/safetensors.h"

namespace hadal::cli {

namespace {

struct Options {
  ModelOptions model;
  Path input, output;
  std::int64_t prefill = -1, chunk = 512;  // -1: everything
  bool hidden = false, mtp = false, packed = false;
};

// input_ids as rows of tokens.
struct Input {
  std::int64_t batch = 0, seq = 0;
  std::vector<std::vector<TokenId>> rows;
};

Input read_input(const Path& path, const model::Config& config) {
  const auto file = io::SafetensorsFile::open(path);
  const io::SafetensorsEntry* entry = file.find("input_ids");
  const auto refuse = [&](const std::string& problem) {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}", path.string(), problem));
  };
  if (entry == nullptr) refuse("there is no tensor input_ids; wanted input_ids [batch, seq] I32");
  const bool wide = entry->dtype == DType::i64;
  if ((entry->dtype != DType::i32 && !wide) || entry->shape.rank() != 2) {
    refuse(fmt::format("input_ids is {} {}, wanted [batch, seq] I32", to_string(entry->shape),
                       entry->dtype_name));
  }
  Input input{entry->shape[0], entry->shape[1], {}};
  if (input.batch == 0 || input.seq == 0) {
    refuse(fmt::format("input_ids {} holds no tokens", to_string(entry->shape)));
  }
  if (input.seq > config.max_position_embeddings) {
    refuse(fmt::format("input_ids has {} tokens a row, the model's context is {}", input.seq,
                       config.max_position_embeddings));
  }
  const Tensor ids = file.tensor(*entry);
  for (std::int64_t b = 0; b < input.batch; ++b) {
    auto& row = input.rows.emplace_back(static_cast<std::size_t>(input.seq));
    for (std::int64_t t = 0; t < input.seq; ++t) {
      const std::int64_t at = b * input.seq + t;
      const std::int64_t id =
          wide ? ids.data<const std::int64_t>()[at] : ids.data<const std::int32_t>()[at];
      if (id < 0 || id >= config.vocab_size) {
        refuse(fmt::format("input_ids[{}, {}] is {}, outside the vocabulary [0, {})", b, t, id,
                           config.vocab_size));
      }
      row[static_cast<std::size_t>(t)] = static_cast<TokenId>(id);
    }
  }
  return input;
}

// n rows of f32 or bf16 written into `to`, a tensor [batch, seq, ...], at [sequence, position].
void place_rows(const Tensor& to, std::int64_t seq, std::int64_t sequence, std::int64_t position,
                const TensorView& rows) {
  const std::int64_t n = rows.dim(0), width = n > 0 ? rows.numel() / n : 0;
  float* out = to.data<float>() + (sequence * seq + position) * width;
  if (rows.dtype() == DType::f32) {
    std::copy_n(rows.data<const float>(), n * width, out);
  } else {
    const auto* x = rows.data<const bf16>();
    for (std::int64_t i = 0; i < n * width; ++i) out[i] = to_float(x[i]);
  }
}

std::vector<std::int64_t> row_range(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(end - begin));
  std::iota(rows.begin(), rows.end(), begin);
  return rows;
}

// Runs sequences over the model and collects what was asked for. Logits of one sequence after the
// other go straight to the file; what else there is waits in memory.
class Runner {
 public:
  Runner(const Options& options, engine::Runtime& runtime, const engine::LoadedModel& loaded,
         Input input)
      : options_(options),
        loaded_(loaded),
        input_(std::move(input)),
        ctx_(runtime.context(options.model.resolved_numerics())),
        kv_(loaded.config,
            {.numerics = options.model.resolved_numerics(), .memory = runtime.cache_memory()}) {
    const model::Config& c = loaded.config;
    const std::int64_t batch = input_.batch, seq = input_.seq;
    std::vector<io::TensorDecl> decls = {{"logits", DType::f32, {batch, seq, c.vocab_size}, {}}};
    if (options.packed) logits_ = Tensor::empty(decls[0].shape, DType::f32);
    if (options.hidden) {
      for (std::int64_t l = 0; l < c.num_hidden_layers; ++l) {
        decls.push_back(
            {fmt::format("hidden.{}", l), DType::f32, {batch, seq, c.hc_mult, c.hidden_size}, {}});
        hidden_.push_back(Tensor::empty(decls.back().shape, DType::f32));
      }
    }
    if (options.mtp) {
      decls.push_back({"mtp.logits", DType::f32, {batch, seq - 1, c.vocab_size}, {}});
      mtp_logits_ = Tensor::empty(decls.back().shape, DType::f32);
    }
    writer_ = std::make_unique<io::SafetensorsWriter>(FileSystem::real(), options.output, decls);
  }

  void run() {
    ProgressBar bar("logits", ProgressBar::Unit::tokens);
    const std::int64_t group = options_.packed ? input_.batch : 1;
    const auto total = static_cast<std::size_t>(input_.batch * input_.seq);
    for (std::int64_t first = 0; first < input_.batch; first += group) {
      slots_.clear();
      for (std::int64_t b = 0; b < group; ++b) slots_.push_back(kv_.open());
      for (std::int64_t t = 0; t < input_.seq;) {
        InterruptGuard::throw_if_interrupted();
        const std::int64_t n = step_length(t);
        step(first, t, n);
        t += n;
        bar.update(static_cast<std::size_t>(first * input_.seq + t * group), total);
      }
      for (const std::int64_t slot : slots_) kv_.close(slot);
    }
    if (options_.packed) writer_->write("logits", logits_);
    for (std::size_t l = 0; l < hidden_.size(); ++l) {
      writer_->write(fmt::format("hidden.{}", l), hidden_[l]);
    }
    if (mtp_logits_) writer_->write("mtp.logits", mtp_logits_);
    writer_->finish();
  }

 private:
  // The prompt in chunks, then token by token.
  [[nodiscard]] std::int64_t step_length(std::int64_t position) const {
    const std::int64_t prefill =
        options_.prefill < 0 ? input_.seq : std::min(options_.prefill, input_.seq);
    return position < prefill ? std::min(options_.chunk, prefill - position) : 1;
  }

  // Tokens [begin, begin + n) of the sequences [first, first + slots) in one forward pass.
  void step(std::int64_t first, std::int64_t begin, std::int64_t n) {
    model::TokenBatch batch;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      batch.add(tokens(first + static_cast<std::int64_t>(i), begin, n), begin, slots_[i]);
    }
    const auto each = [&](const TensorView& rows, auto&& fn) {
      for (std::size_t i = 0; i < slots_.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        fn(first + at, rows.slice(at * n, (at + 1) * n));
      }
    };
    model::Model::LayerObserver observer;
    if (options_.hidden) {
      observer = [&](std::int64_t layer, const Tensor& streams) {
        each(ctx_.to_host(streams), [&](std::int64_t sequence, const TensorView& rows) {
          place_rows(hidden_[static_cast<std::size_t>(layer)], input_.seq, sequence, begin, rows);
        });
      };
    }
    const Tensor streams = loaded_.model.forward(ctx_, batch, kv_, observer);
    const Tensor logits =
        ctx_.to_host(loaded_.model.logits(ctx_, streams, row_range(0, streams.dim(0))));
    if (options_.packed) {
      each(logits, [&](std::int64_t sequence, const TensorView& rows) {
        place_rows(logits_, input_.seq, sequence, begin, rows);
      });
    } else {
      writer_->write("logits", std::span<const std::byte>(logits.bytes(), logits.nbytes()));
    }
    if (options_.mtp) mtp_step(first, begin, n, streams);
  }

  // The MTP block over those of the tokens that have a next one.
  void mtp_step(std::int64_t first, std::int64_t begin, std::int64_t n, const Tensor& streams) {
    const std::int64_t known = std::min(begin + n, input_.seq - 1) - begin;
    if (known <= 0) return;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const std::int64_t sequence = first + static_cast<std::int64_t>(i);
      model::TokenBatch batch;
      batch.add(tokens(sequence, begin, known), begin, slots_[i]);
      const std::int64_t row = static_cast<std::int64_t>(i) * n;
      const Tensor drafted = loaded_.model.mtp_forward(
          ctx_, 0, batch, kv_, streams.slice(row, row + known), tokens(sequence, begin + 1, known));
      place_rows(mtp_logits_, input_.seq - 1, sequence, begin,
                 ctx_.to_host(loaded_.model.mtp_logits(ctx_, 0, drafted, row_range(0, known))));
    }
  }

  [[nodiscard]] std::span<const TokenId> tokens(std::int64_t sequence, std::int64_t begin,
                                                std::int64_t n) const {
    return std::span(input_.rows[static_cast<std::size_t>(sequence)])
        .subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n));
  }

  const Options& options_;
  const engine::LoadedModel& loaded_;
  Input input_;
  ExecContext ctx_;
  cache::PagedKv kv_;
  std::vector<std::int64_t> slots_;  // of the sequences that run now
  Tensor logits_, mtp_logits_;
  std::vector<Tensor> hidden_;
  std::unique_ptr<io::SafetensorsWriter> writer_;
};

int run(const Options& options) {
  const auto runtime = options.model.runtime();
  const auto loaded = options.model.load(runtime.get());
  if (options.mtp && loaded->model.n_mtp() == 0) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} has no MTP block; leave out --mtp", loaded->directory.string()));
  }
  if (options.model.resolved_numerics() == Numerics::official) {
    const std::string obstacle = loaded->config.official_numerics_obstacle();
    if (!obstacle.empty()) throw Error(ErrorCode::unsupported, obstacle + "; use --numerics fp32");
  }
  const InterruptGuard guard;
  try {
    Runner(options, *runtime, *loaded, read_input(options.input, loaded->config)).run();
  } catch (...) {
    std::error_code error;
    std::filesystem::remove(options.output.string() + ".partial", error);
    throw;
  }
  return 0;
}

Action add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_options(app, options->model);
  app.add_option("-i,--input", options->input, "safetensors file with input_ids [batch, seq] I32")
      ->required();
  app.add_option("-o,--output", options->output, "safetensors file to write")->required();
  app.add_option("--prefill", options->prefill,
                 "tokens to run at once; the rest is decoded one by one, each with the tokens that "
                 "the input has before it; without it, all of them")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--chunk", options->chunk, "most tokens of a sequence in one forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--packed", options->packed, "run the rows of the batch in the same forward passes");
  app.add_flag("--hidden", options->hidden, "write hidden.<layer>, too");
  app.add_flag("--mtp", options->mtp, "write mtp.logits, too");
  return [options] { return run(*options); };
}

}  // namespace

const Subcommand kLogits{
    "logits", "Write the logits of given tokens, to compare hadal with other implementations",
    "  hadal logits --model DIR --input in.safetensors --output out.safetensors\n"
    "  hadal logits --model DIR --input in.safetensors --output out.safetensors --prefill 100 \\\n"
    "      --numerics fp32 --hidden\n"
    "\n"
    "Tensors of the output, all F32:\n"
    "  logits          [batch, seq, vocab]            row i: after token i\n"
    "  hidden.<layer>  [batch, seq, hc_mult, hidden]  --hidden: streams after each main layer\n"
    "  mtp.logits      [batch, seq - 1, vocab]        --mtp: token i's state with the embedding "
    "of\n"
    "                                                 token i + 1, so the guess for token i + 2\n"
    "The bytes do not depend on --prefill, --chunk, --packed or --threads.",
    add};

}  // namespace hadal::cli
