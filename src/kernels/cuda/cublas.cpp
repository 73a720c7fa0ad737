#include "kernels/cuda/cublas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include <fmt/format.h>

#include "core/cuda/queue.h"

namespace hadal::kernels::cuda {

namespace {

constexpr std::size_t kMaxWorkspace = std::size_t{64} << 20;
// The batch that any_batch chooses for, whatever the batch is.
constexpr std::int64_t kUsualBatch = 32;

struct Api {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoCheck) algo_check;
  decltype(&cublasLtMatmulAlgoGetHeuristic) algo_get_heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

Api open_library() {
  void* library = nullptr;
  for (const char* name :
       {"libcublasLt.so.13", "libcublasLt.so", "/usr/local/cuda/lib64/libcublasLt.so"}) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    const char* why = dlerror();
    throw Error(ErrorCode::device,
                fmt::format("cuBLASLt, which multiplies matrices when training on a GPU, cannot be "
                            "opened ({}); install libcublas of CUDA 13 (the package libcublas-13-0 "
                            "or the toolkit) where the dynamic linker finds libcublasLt.so.13",
                            why == nullptr ? "no reason given" : why));
  }
  Api api{};
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) {
      throw Error(ErrorCode::device,
                  fmt::format("the cuBLASLt that the dynamic linker finds has no {}; install "
                              "libcublas of CUDA 13",
                              name));
    }
  };
  find(api.create, "cublasLtCreate");
  find(api.status_string, "cublasLtGetStatusString");
  find(api.matmul, "cublasLtMatmul");
  find(api.algo_check, "cublasLtMatmulAlgoCheck");
  find(api.algo_get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(api.desc_create, "cublasLtMatmulDescCreate");
  find(api.desc_destroy, "cublasLtMatmulDescDestroy");
  find(api.desc_set, "cublasLtMatmulDescSetAttribute");
  find(api.layout_create, "cublasLtMatrixLayoutCreate");
  find(api.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(api.layout_set, "cublasLtMatrixLayoutSetAttribute");
  find(api.preference_create, "cublasLtMatmulPreferenceCreate");
  find(api.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(api.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  return api;
}

const Api& api() {
  static const Api instance = open_library();
  return instance;
}

std::string describe(const Gemm& g) {
  return fmt::format("{} x {} x {} of {} to {}, {} at a time", g.m, g.n, g.k, to_string(g.operands),
                     to_string(g.result), g.n_batch);
}

void check(cublasStatus_t status, const Gemm& g) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorCode::device, fmt::format("cuBLASLt refused a product ({}): {}", describe(g),
                                             api().status_string(status)));
}

cudaDataType_t type_of(DType dtype) {
  if (dtype == DType::f32) return CUDA_R_32F;
  HADAL_CHECK(dtype == DType::bf16);
  return CUDA_R_16BF;
}
std::int64_t bytes_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

// Up to the next number of three significant bits, at least 16: sizes that vary from call to call,
// such as the tokens of an expert, share what was chosen for them.
std::int64_t rounded_up(std::int64_t n) {
  if (n <= 16) return 16;
  const int shift = std::bit_width(static_cast<std::uint64_t>(n - 1)) - 3;
  const std::int64_t unit = std::int64_t{1} << std::max(shift, 0);
  return (n + unit - 1) / unit * unit;
}

// What a choice depends on.
struct Key {
  std::array<std::int64_t, 12> numbers;
  friend auto operator<=>(const Key&, const Key&) = default;
};

std::int64_t alignment(const Gemm::Matrix& x, std::int64_t item) {
  auto all = reinterpret_cast<std::uintptr_t>(x.data) | static_cast<std::uintptr_t>(x.ld * item) |
             static_cast<std::uintptr_t>(x.batch_stride * item);
  for (const std::int64_t bytes : {16, 8, 4}) {
    if (all % static_cast<std::uintptr_t>(bytes) == 0) return bytes;
  }
  return 2;
}

struct Alignments {
  std::int64_t a, b, out;
  [[nodiscard]] bool full() const { return std::min({a, b, out}) == 16; }
};
Alignments alignments(const Gemm& g) {
  Gemm::Matrix addend = g.out;
  if (g.addend != nullptr) addend.data = const_cast<void*>(g.addend);
  const std::int64_t item = bytes_of(g.operands), out_item = bytes_of(g.result);
  return {alignment(g.a, item), alignment(g.b, item),
          std::min(alignment(g.out, out_item), alignment(addend, out_item))};
}

Key key_of(const Gemm& g) {
  const Alignments at = alignments(g);
  const std::int64_t flags =
      (g.a.transposed == Transposed::yes ? 1 : 0) | (g.b.transposed == Transposed::yes ? 2 : 0) |
      (g.operands == DType::f32 ? 4 : 0) | (g.result == DType::f32 ? 8 : 0) |
      (g.beta != 0.0f ? 16 : 0) | (g.any_batch ? 32 : 0) | (g.addend != nullptr ? 64 : 0);
  return {{g.m, g.n, g.k, g.n_batch, g.a.ld, g.b.ld, g.out.ld, g.a.batch_stride, g.b.batch_stride,
           g.out.batch_stride, flags, at.a << 16 | at.b << 8 | at.out}};
}

// cuBLASLt is column-major: it sees every matrix transposed, and out' = b' a'.
class Problem {
 public:
  explicit Problem(const Gemm& g) {
    check(api().desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), g);
    const cublasOperation_t op_a = operation(g.b), op_b = operation(g.a);
    check(api().desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a), g);
    check(api().desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b), g);
    a = layout(g, g.b, g.operands, g.k, g.n);
    b = layout(g, g.a, g.operands, g.m, g.k);
    out = layout(g, g.out, g.result, g.m, g.n);
  }
  ~Problem() {
    if (desc != nullptr) (void)api().desc_destroy(desc);
    for (cublasLtMatrixLayout_t x : {a, b, out}) {
      if (x != nullptr) (void)api().layout_destroy(x);
    }
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, out = nullptr;

 private:
  static cublasOperation_t operation(const Gemm::Matrix& x) {
    return x.transposed == Transposed::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
  }
  // Of op(x) [rows, cols].
  static cublasLtMatrixLayout_t layout(const Gemm& g, const Gemm::Matrix& x, DType dtype,
                                       std::int64_t rows, std::int64_t cols) {
    if (x.transposed == Transposed::yes) std::swap(rows, cols);
    cublasLtMatrixLayout_t result = nullptr;
    check(api().layout_create(&result, type_of(dtype), static_cast<std::uint64_t>(cols),
                              static_cast<std::uint64_t>(rows), x.ld),
          g);
    const auto n = static_cast<std::int32_t>(g.n_batch);
    check(api().layout_set(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof n), g);
    check(api().layout_set(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &x.batch_stride,
                           sizeof x.batch_stride),
          g);
    return result;
  }
};

struct Choice {
  cublasLtMatmulAlgo_t algorithm;
  std::size_t workspace;
};

class Device {
 public:
  Device() {
    const cublasStatus_t status = api().create(&handle_);
    if (status != CUBLAS_STATUS_SUCCESS) {
      throw Error(ErrorCode::device,
                  fmt::format("cuBLASLt does not start on this GPU: {}; is the driver at least as "
                              "new as the library?",
                              api().status_string(status)));
    }
  }

  [[nodiscard]] cublasLtHandle_t handle() const { return handle_; }

  // None when cuBLASLt cannot multiply these.
  std::optional<Choice> choose(const Gemm& g, const Problem& problem) {
    const std::lock_guard lock(mutex_);
    const Key key = key_of(g);
    if (const auto known = choices_.find(key); known != choices_.end()) return known->second;
    std::optional<Choice> choice = shared(g, problem);
    if (!choice) choice = ask(g, problem);
    return choices_.emplace(key, choice).first->second;
  }

 private:
  // What was chosen for sizes rounded up, when it can do this one.
  std::optional<Choice> shared(const Gemm& g, const Problem& problem) {
    if (!alignments(g).full()) return std::nullopt;
    Gemm usual = g;
    usual.m = rounded_up(g.m), usual.n = rounded_up(g.n), usual.k = rounded_up(g.k);
    if (g.any_batch) usual.n_batch = kUsualBatch;
    const auto widen = [](Gemm::Matrix& x, std::int64_t rows, std::int64_t cols) {
      if (x.transposed == Transposed::yes) std::swap(rows, cols);
      x.ld = std::max(x.ld, cols);
      if (x.batch_stride != 0) x.batch_stride = std::max(x.batch_stride, rows * x.ld);
    };
    widen(usual.a, usual.m, usual.k);
    widen(usual.b, usual.k, usual.n);
    widen(usual.out, usual.m, usual.n);
    const Key key = key_of(usual);
    auto known = usual_.find(key);
    if (known == usual_.end()) {
      known = usual_.emplace(key, ask(usual, Problem(usual))).first;
    }
    if (!known->second) return std::nullopt;
    cublasLtMatmulHeuristicResult_t result{};
    const cublasStatus_t status =
        api().algo_check(handle_, problem.desc, problem.a, problem.b, problem.out, problem.out,
                         &known->second->algorithm, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kMaxWorkspace) {
      return std::nullopt;
    }
    return Choice{known->second->algorithm, result.workspaceSize};
  }

  std::optional<Choice> ask(const Gemm& g, const Problem& problem) {
    cublasLtMatmulPreference_t preference = nullptr;
    check(api().preference_create(&preference), g);
    const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                          decltype(api().preference_destroy)>
        owner(preference, api().preference_destroy);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(api().preference_set(preference, attribute, &value, sizeof value), g);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMaxWorkspace);
    if (g.any_batch) {
      set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
          static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
    }
    const Alignments at = alignments(g);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(at.b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(at.a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(at.out));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(at.out));
    cublasLtMatmulHeuristicResult_t result{};
    int n_found = 0;
    const cublasStatus_t status =
        api().algo_get_heuristic(handle_, problem.desc, problem.a, problem.b, problem.out,
                                 problem.out, preference, 1, &result, &n_found);
    if (status != CUBLAS_STATUS_SUCCESS || n_found == 0) return std::nullopt;
    return Choice{result.algo, result.workspaceSize};
  }

  std::mutex mutex_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, std::optional<Choice>> choices_;  // by exact sizes
  std::map<Key, std::optional<Choice>> usual_;    // by rounded sizes
};

// Handles live as long as the process: a GPU may be gone when statics are destroyed.
Device& device_of(const Stream& stream) {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, std::unique_ptr<Device>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Device>& device = devices[stream.cuda().device().index];
  if (!device) device = std::make_unique<Device>();
  return *device;
}

}  // namespace

namespace {

// False when cuBLASLt cannot multiply these.
bool try_gemm(Stream& stream, const Gemm& g) {
  Device& device = device_of(stream);
  const Problem problem(g);
  const std::optional<Choice> choice = device.choose(g, problem);
  if (!choice) return false;
  const auto n_bytes = static_cast<std::int64_t>(choice->workspace);
  const Tensor workspace = n_bytes > 0 ? stream.cuda().scratch(n_bytes) : Tensor();
  check(api().matmul(device.handle(), problem.desc, &g.alpha, g.b.data, problem.a, g.a.data,
                     problem.b, &g.beta, g.addend != nullptr ? g.addend : g.out.data, problem.out,
                     g.out.data, problem.out, &choice->algorithm, workspace.bytes(),
                     choice->workspace, static_cast<cudaStream_t>(stream.cuda().stream())),
        g);
  return true;
}

Gemm one_of(const Gemm& g, std::int64_t i) {
  Gemm one = g;
  const auto advance = [&](Gemm::Matrix& x, DType dtype) {
    x.data = static_cast<std::byte*>(x.data) + i * x.batch_stride * bytes_of(dtype);
    x.batch_stride = 0;
  };
  advance(one.a, g.operands);
  advance(one.b, g.operands);
  advance(one.out, g.result);
  if (g.addend != nullptr) {
    one.addend =
        static_cast<const std::byte*>(g.addend) + i * g.out.batch_stride * bytes_of(g.result);
  }
  one.n_batch = 1;
  return one;
}

}  // namespace

void gemm(Stream& stream, const Gemm& g) {
  if (g.m == 0 || g.n == 0 || g.n_batch == 0) return;
  HADAL_CHECK(g.k > 0 && g.out.transposed == Transposed::no);
  HADAL_CHECK(g.result == DType::f32 || g.operands == DType::bf16);
  if (try_gemm(stream, g)) return;
  // Batches whose matrices lie between each other's rows, if the library has no way for those.
  bool done = g.n_batch > 1;
  for (std::int64_t i = 0; done && i < g.n_batch; ++i) done = try_gemm(stream, one_of(g, i));
  if (!done) {
    throw Error(ErrorCode::device, fmt::format("cuBLASLt has no way to multiply {}", describe(g)));
  }
}

}  // namespace hadal::kernels::cuda
