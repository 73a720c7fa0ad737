// Every CUDA kernel, by name and activation dtype.
#include "kernels/adamw.h"
#include "kernels/compress_kv.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embed.h"
#include "kernels/hyper_connection.h"
#include "kernels/index_loss.h"
#include "kernels/indexer.h"
#include "kernels/kv_rows.h"
#include "kernels/linear.h"
#include "kernels/moe.h"
#include "kernels/muon.h"
#include "kernels/newton_schulz.h"
#include "kernels/registry.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sparse_attention.h"
#include "kernels/store_weights.h"
#include "kernels/sum_squares.h"

namespace hadal::kernels::cuda {

void add_to_streams(Stream&, const AddToStreamsArgs&);
void scale(Stream&, const ScaleArgs&);
void copy(Stream&, const CopyArgs&);
void add_in_place(Stream&, const AddInPlaceArgs&);
void sum_streams(Stream&, const SumStreamsArgs&);

// Tokens, norms, streams and routes.
void embed(Stream&, const EmbedArgs&);
void rms_norm(Stream&, const RmsNormArgs&);
void head_norm(Stream&, const HeadNormArgs&);
void rope_table(Stream&, const RopeTableArgs&);
void rope(Stream&, const RopeArgs&);
void hc_pre(Stream&, const HcPreArgs&);
void hc_post(Stream&, const HcPostArgs&);
void hc_head(Stream&, const HcHeadArgs&);
void moe_route(Stream&, const MoeRouteArgs&);

// Products with weights.
void linear(Stream&, const LinearArgs&);
void moe_experts(Stream&, const MoeExpertsArgs&);

// Attention and its memory.
void store_kv_rows(Stream&, const StoreRowsArgs&);
void copy_kv_rows(Stream&, const CopyRowsArgs&);
void compress_kv(Stream&, const CompressKvArgs&);
void hadamard(Stream&, const HadamardArgs&);
void fake_quantize_fp4(Stream&, const FakeQuantizeFp4Args&);
void index_topk(Stream&, const IndexTopkArgs&);
void sparse_attention(Stream&, const SparseAttentionArgs&);

// Gradients of tokens, norms, streams and routes.
void embed_backward(Stream&, const EmbedBackwardArgs&);
void rms_norm_backward(Stream&, const RmsNormBackwardArgs&);
void hc_gate_backward(Stream&, const HcGateBackwardArgs&);
void hc_post_backward(Stream&, const HcPostBackwardArgs&);
void compress_kv_backward(Stream&, const CompressKvBackwardArgs&);
void moe_route_backward(Stream&, const MoeRouteBackwardArgs&);
void balance_loss(Stream&, const BalanceLossArgs&);
void expert_load(Stream&, const ExpertLoadArgs&);

// The optimizer.
void sum_squares(Stream&, const SumSquaresArgs&);
void adamw(Stream&, const AdamwArgs&);
void muon_momentum(Stream&, const MuonMomentumArgs&);
void muon_update(Stream&, const MuonUpdateArgs&);
void store_weights(Stream&, const StoreWeightsArgs&);

// Training.
void linear_backward(Stream&, const LinearBackwardArgs&);
void cross_entropy(Stream&, const CrossEntropyArgs&);
void newton_schulz(Stream&, const NewtonSchulzArgs&);
void moe_experts_backward(Stream&, const MoeExpertsBackwardArgs&);
void sparse_attention_backward(Stream&, const SparseAttentionBackwardArgs&);
void index_loss(Stream&, const IndexLossArgs&);

namespace {

constexpr KernelKey kF32{DeviceKind::cuda, DType::f32};
constexpr KernelKey kBf16{DeviceKind::cuda, DType::bf16};

void register_elementwise(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kAddToStreams, key, add_to_streams);
    registry.add(kScale, key, scale);
    registry.add(kCopy, key, copy);
  }
  registry.add(kAddInPlace, kF32, add_in_place);
  registry.add(kSumStreams, kF32, sum_streams);
}

void register_products(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kLinear, key, linear);
    registry.add(kMoeExperts, key, moe_experts);
  }
}

void register_rows(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kEmbed, key, embed);
    registry.add(kRmsNorm, key, rms_norm);
    registry.add(kHeadNorm, key, head_norm);
    registry.add(kRope, key, rope);
    registry.add(kHcPre, key, hc_pre);
    registry.add(kHcPost, key, hc_post);
    registry.add(kHcHead, key, hc_head);
    registry.add(kMoeRoute, key, moe_route);
  }
  registry.add(kRopeTable, kF32, rope_table);
}

void register_attention(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kStoreRows, key, store_kv_rows);
    registry.add(kCopyRows, key, copy_kv_rows);
    registry.add(kCompressKv, key, compress_kv);
    registry.add(kHadamard, key, hadamard);
    registry.add(kFakeQuantizeFp4, key, fake_quantize_fp4);
    registry.add(kIndexTopk, key, index_topk);
    registry.add(kSparseAttention, key, sparse_attention);
  }
}

void register_row_gradients(KernelRegistry& registry) {
  registry.add(kEmbedBackward, kF32, embed_backward);
  registry.add(kCompressKvBackward, kF32, compress_kv_backward);
  registry.add(kMoeRouteBackward, kF32, moe_route_backward);
  registry.add(kBalanceLoss, kF32, balance_loss);
  registry.add(kExpertLoad, kF32, expert_load);
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kRmsNormBackward, key, rms_norm_backward);
    registry.add(kHcGateBackward, key, hc_gate_backward);
    registry.add(kHcPostBackward, key, hc_post_backward);
  }
}

void register_optimizer(KernelRegistry& registry) {
  registry.add(kSumSquares, kF32, sum_squares);
  registry.add(kAdamw, kF32, adamw);
  registry.add(kMuonMomentum, kF32, muon_momentum);
  registry.add(kMuonUpdate, kF32, muon_update);
  registry.add(kStoreWeights, kF32, store_weights);
}

void register_training(KernelRegistry& registry) {
  for (const KernelKey key : {kF32, kBf16}) {
    registry.add(kLinearBackward, key, linear_backward);
    registry.add(kCrossEntropy, key, cross_entropy);
    registry.add(kMoeExpertsBackward, key, moe_experts_backward);
    registry.add(kSparseAttentionBackward, key, sparse_attention_backward);
    registry.add(kIndexLoss, key, index_loss);
  }
  registry.add(kNewtonSchulz, kF32, newton_schulz);
}

}  // namespace

void register_kernels(KernelRegistry& registry) {
  register_elementwise(registry);
  register_products(registry);
  register_rows(registry);
  register_attention(registry);
  register_row_gradients(registry);
  register_optimizer(registry);
  register_training(registry);
}

}  // namespace hadal::kernels::cuda
