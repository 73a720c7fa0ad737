#include "train/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/units.h"
#include "model/in_batch_kv.h"
#include "train/loss.h"
#include "train/step_watch.h"

namespace hadal::train {

namespace {

std::size_t f32_bytes(const Shape& shape) {
  return static_cast<std::size_t>(shape.numel()) * sizeof(float);
}

model::WeightFormat format_of(Compute compute) {
  switch (compute) {
    case Compute::f32:
      return model::WeightFormat::f32;
    case Compute::bf16:
      return model::WeightFormat::bf16;
    case Compute::qat:
      return model::WeightFormat::published;
  }
  return model::WeightFormat::f32;
}

// An address that nobody reads or writes: kernels are idle.
Tensor unbacked(Shape shape, DType dtype) {
  static std::byte place[64];
  return {std::shared_ptr<std::byte>(std::shared_ptr<void>(), place), shape, dtype};
}

// The tensors of a checkpoint of that format, without their memory.
model::BoundWeights unbacked_weights(const model::Config& config, model::WeightFormat format,
                                     const std::vector<ParameterInfo>& layout) {
  std::size_t next = 0;
  return model::BoundWeights::from_memory(
      config, [&](const model::ExpectedWeight& w) -> QuantTensor {
        const ParameterInfo& info = layout[next++];
        const VariableId id = info.group == ParameterGroup::frozen ? 0 : info.id;
        using model::WeightRole;
        DType dtype = DType::f32;
        if (w.role == WeightRole::token_table) dtype = DType::i32;
        if (format != model::WeightFormat::f32) {
          if (w.role == WeightRole::matrix) dtype = DType::bf16;
          if (w.role == WeightRole::linear || w.role == WeightRole::expert) dtype = DType::bf16;
        }
        if (format == model::WeightFormat::published) {
          if (w.role == WeightRole::linear) dtype = DType::f8_e4m3;
          if (w.role == WeightRole::expert) dtype = DType::f4_e2m1;
        }
        QuantTensor t{unbacked(w.shape, dtype).as_variable(id), {}, {}};
        if (dtype == DType::f8_e4m3 || dtype == DType::f4_e2m1) {
          t.block = dtype == DType::f8_e4m3 ? kFp8Block : kFp4Block;
          t.scale = unbacked(model::scale_shape(w.shape, t.block), DType::ue8m0);
        }
        return t;
      });
}

MicroBatch full_rows(std::int64_t rows, std::int64_t length) {
  MicroBatch batch;
  const std::vector<TokenId> ids(static_cast<std::size_t>(length), 0);
  for (std::int64_t r = 0; r < rows; ++r) batch.tokens.add(ids, 0, r);
  batch.targets.assign(static_cast<std::size_t>(rows * length), 0);
  batch.n_padding.assign(static_cast<std::size_t>(rows), 0);
  batch.n_targets = rows * length;
  return batch;
}

}  // namespace

MemoryPlan plan_memory(const RunConfig& config, ThreadPool& pool) {
  MemoryPlan plan;
  const std::vector<ParameterInfo> layout = parameter_layout(config.model, config.groups);
  const model::WeightFormat format = format_of(config.compute);
  for (const ParameterInfo& p : layout) {
    const std::size_t bytes = f32_bytes(p.shape);
    plan.weights += bytes;
    if (p.group != ParameterGroup::frozen) plan.gradients += bytes;
    if (p.group == ParameterGroup::muon) plan.optimizer += bytes;
    if (p.group == ParameterGroup::adamw) plan.optimizer += 2 * bytes;
  }
  if (format != model::WeightFormat::f32) {
    for (const io::TensorDecl& d : model::stored_tensors(config.model, format)) {
      if (d.dtype != DType::f32 && d.dtype != DType::i64) plan.working += nbytes(d.shape, d.dtype);
    }
  }
  if (config.anticipatory.enable || config.on_non_finite == OnNonFinite::rollback) {
    const std::int64_t kept =
        1 + (config.anticipatory.rollback_steps + config.anticipatory.snapshot_every - 1) /
                config.anticipatory.snapshot_every;
    plan.snapshots = static_cast<std::size_t>(kept) * (plan.weights + plan.optimizer);
  }

  const KernelRegistry idle = KernelRegistry::idle();
  const model::Model model(config.model, unbacked_weights(config.model, format, layout));
  const Numerics numerics = config.compute == Compute::f32 ? Numerics::fp32 : Numerics::official;
  for (const LengthStage& stage : config.schedule.stages) {
    const std::int64_t tokens =
        config.micro_batch_tokens == 0 ? config.schedule.batch.tokens : config.micro_batch_tokens;
    const std::int64_t rows = std::max<std::int64_t>(1, tokens / stage.sequence_length);
    Stream stream(pool);
    PoolAllocator allocator;
    Tape tape(allocator, static_cast<VariableId>(layout.size()));
    tape.recompute_enabled = config.recompute;
    for (const ParameterInfo& p : layout) {
      if (p.group != ParameterGroup::frozen) {
        tape.set_gradient(p.id, unbacked(p.shape, DType::f32));
      }
    }
    ExecContext ctx(stream, allocator, idle, numerics);
    ctx.set_tape(&tape);
    const MicroBatch batch = full_rows(rows, stage.sequence_length);
    model::InBatchKv kv(config.model, numerics, allocator);
    const model::StepOptions step{.csa_selection = stage.sparse ? model::CsaSelection::indexer
                                                                : model::CsaSelection::all};
    static_cast<void>(
        run_losses(ctx, model, batch, kv,
                   {.mtp_scale = config.schedule.mtp_weight > 0 ? 1.0f : 0.0f, .step = step}));
    tape.backward(ctx);
    const std::size_t peak = allocator.peak_bytes();
    if (peak > plan.activations) {
      plan.activations = peak;
      plan.widest = fmt::format("{} x {} tokens, {}", rows, stage.sequence_length,
                                stage.sparse ? "sparse" : "dense");
    }
  }
  return plan;
}

std::string to_string(const MemoryPlan& p, const cuda::DeviceInfo* gpu) {
  const auto line = [](const char* what, std::size_t bytes, const std::string& note) {
    return fmt::format("  {:<24}{:>12}{}\n", what, format_bytes(static_cast<double>(bytes)),
                       note.empty() ? "" : "   " + note);
  };
  std::string out = "memory that this run needs:\n";
  out += line("weights (f32)", p.weights, "");
  out += line("gradients", p.gradients, "");
  out += line("optimizer", p.optimizer, "");
  if (p.working > 0) out += line("stored forms", p.working, "what the model multiplies");
  if (p.snapshots > 0) out += line("snapshots", p.snapshots, "to roll back to");
  out += line("activations", p.activations, p.widest);
  out += line("together", p.total(), "");
  if (gpu == nullptr) return out;
  out +=
      line("free", gpu->free_bytes,
           fmt::format("of {} on GPU {}, {}", format_bytes(static_cast<double>(gpu->total_bytes)),
                       gpu->index, gpu->name));
  if (p.total() > gpu->free_bytes) {
    out +=
        "  That is too little: lower train.micro_batch_tokens for fewer activations, or train a "
        "smaller model.\n";
  }
  return out;
}

}  // namespace hadal::train
