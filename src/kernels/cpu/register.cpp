// Every CPU kernel, by name and activation dtype.
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

namespace hadal::kernels::cpu {

void embed(Stream&, const EmbedArgs&);
void rms_norm(Stream&, const RmsNormArgs&);
void head_norm(Stream&, const HeadNormArgs&);
void rope(Stream&, const RopeArgs&);
void rope_table(Stream&, const RopeTableArgs&);
void linear(Stream&, const LinearArgs&);
void hc_pre(Stream&, const HcPreArgs&);
void hc_post(Stream&, const HcPostArgs&);
void hc_head(Stream&, const HcHeadArgs&);
void compress_kv(Stream&, const CompressKvArgs&);
void store_kv_rows(Stream&, const StoreRowsArgs&);
void copy_kv_rows(Stream&, const CopyRowsArgs&);
void hadamard(Stream&, const HadamardArgs&);
void fake_quantize_fp4(Stream&, const FakeQuantizeFp4Args&);
void index_topk(Stream&, const IndexTopkArgs&);
void sparse_attention(Stream&, const SparseAttentionArgs&);
void moe_route(Stream&, const MoeRouteArgs&);
void moe_experts(Stream&, const MoeExpertsArgs&);
void add_to_streams(Stream&, const AddToStreamsArgs&);
void scale(Stream&, const ScaleArgs&);
void copy(Stream&, const CopyArgs&);
void add_in_place(Stream&, const AddInPlaceArgs&);
void sum_streams(Stream&, const SumStreamsArgs&);
void embed_backward(Stream&, const EmbedBackwardArgs&);
void linear_backward(Stream&, const LinearBackwardArgs&);
void cross_entropy(Stream&, const CrossEntropyArgs&);
void rms_norm_backward(Stream&, const RmsNormBackwardArgs&);
void compress_kv_backward(Stream&, const CompressKvBackwardArgs&);
void sparse_attention_backward(Stream&, const SparseAttentionBackwardArgs&);
void index_loss(Stream&, const IndexLossArgs&);
void hc_gate_backward(Stream&, const HcGateBackwardArgs&);
void hc_post_backward(Stream&, const HcPostBackwardArgs&);
void moe_route_backward(Stream&, const MoeRouteBackwardArgs&);
void moe_experts_backward(Stream&, const MoeExpertsBackwardArgs&);
void balance_loss(Stream&, const BalanceLossArgs&);
void expert_load(Stream&, const ExpertLoadArgs&);

// optimizer
void sum_squares(Stream&, const SumSquaresArgs&);
void muon_momentum(Stream&, const MuonMomentumArgs&);
void newton_schulz(Stream&, const NewtonSchulzArgs&);
void muon_update(Stream&, const MuonUpdateArgs&);
void adamw(Stream&, const AdamwArgs&);
void store_weights(Stream&, const StoreWeightsArgs&);

void register_kernels(KernelRegistry& registry) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const KernelKey key{DeviceKind::cpu, dtype};
    registry.add(kEmbed, key, embed);
    registry.add(kRmsNorm, key, rms_norm);
    registry.add(kHeadNorm, key, head_norm);
    registry.add(kRope, key, rope);
    registry.add(kLinear, key, linear);
    registry.add(kHcPre, key, hc_pre);
    registry.add(kHcPost, key, hc_post);
    registry.add(kHcHead, key, hc_head);
    registry.add(kCompressKv, key, compress_kv);
    registry.add(kStoreRows, key, store_kv_rows);
    registry.add(kCopyRows, key, copy_kv_rows);
    registry.add(kHadamard, key, hadamard);
    registry.add(kFakeQuantizeFp4, key, fake_quantize_fp4);
    registry.add(kIndexTopk, key, index_topk);
    registry.add(kSparseAttention, key, sparse_attention);
    registry.add(kMoeRoute, key, moe_route);
    registry.add(kMoeExperts, key, moe_experts);
    registry.add(kAddToStreams, key, add_to_streams);
    registry.add(kScale, key, scale);
    registry.add(kCopy, key, copy);
  }

  registry.add(kRopeTable, {DeviceKind::cpu, DType::f32}, rope_table);

  // Backward passes; the key is the activations' dtype, gradients are f32.
  const KernelKey f32{DeviceKind::cpu, DType::f32};
  registry.add(kAddInPlace, f32, add_in_place);
  registry.add(kSumStreams, f32, sum_streams);
  registry.add(kEmbedBackward, f32, embed_backward);
  registry.add(kCompressKvBackward, f32, compress_kv_backward);
  registry.add(kMoeRouteBackward, f32, moe_route_backward);
  registry.add(kBalanceLoss, f32, balance_loss);
  registry.add(kExpertLoad, f32, expert_load);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const KernelKey key{DeviceKind::cpu, dtype};
    registry.add(kLinearBackward, key, linear_backward);
    registry.add(kCrossEntropy, key, cross_entropy);
    registry.add(kRmsNormBackward, key, rms_norm_backward);
    registry.add(kSparseAttentionBackward, key, sparse_attention_backward);
    registry.add(kIndexLoss, key, index_loss);
    registry.add(kHcGateBackward, key, hc_gate_backward);
    registry.add(kHcPostBackward, key, hc_post_backward);
    registry.add(kMoeExpertsBackward, key, moe_experts_backward);
  }

  // optimizer
  const KernelKey master{DeviceKind::cpu, DType::f32};
  registry.add(kSumSquares, master, sum_squares);
  registry.add(kMuonMomentum, master, muon_momentum);
  registry.add(kNewtonSchulz, master, newton_schulz);
  registry.add(kMuonUpdate, master, muon_update);
  registry.add(kAdamw, master, adamw);
  registry.add(kStoreWeights, master, store_weights);
}

}  // namespace hadal::kernels::cpu
