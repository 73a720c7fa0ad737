// Products of a warpgroup (wgmma): D [64, N] f32 += A [64, K] * B [N, K]', K = 16 bf16 or 32 E4M3.
//
// Thread (warp w of four, g = lane / 4, t = lane % 4) holds of D rows 16w + g (d[4j], d[4j + 1])
// and 16w + g + 8 (d[4j + 2], d[4j + 3]), columns 8j + 2t and 8j + 2t + 1: per warp and 8 columns
// what mma.m16n8 has. A comes from registers, laid out as for mma.m16n8k16 (bf16) or m16n8k32
// (E4M3), or like B from shared memory: rows of 128 bytes, eight of them an atom of 1 KiB, whose
// pieces of 16 bytes are swizzled, see wgmma_swizzle.
//
// Issued work reads its registers and shared memory until wgmma_wait says that it is done.
#pragma once

#include <cstdint>

namespace hadal::kernels::cuda {

// Where piece c (0..7) of 16 bytes of row r lies, from a multiple of 1,024 bytes on.
__host__ __device__ constexpr int wgmma_swizzle(int r, int c) {
  return r * 128 + (c ^ (r % 8)) * 16;
}
// Rows of 128 bytes from shared memory address `at` on (a multiple of 1,024). Step k of a row, 32
// bytes, is at + 2 * k.
__device__ __forceinline__ std::uint64_t wgmma_rows(std::uint32_t at) {
  return std::uint64_t{(at & 0x3ffffu) >> 4} | std::uint64_t{1} << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

// Before the first wgmma, and after registers that it uses were written by anything else.
__device__ __forceinline__ void wgmma_arrive() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Until all are done. Sums are read, and operands change, after this only.
template <int kSums, int kSteps>
__device__ __forceinline__ void wgmma_wait_for(float (&d)[kSums],
                                               const std::uint32_t (&a)[kSteps][4]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(d[i])::"memory");
#pragma unroll
  for (int i = 0; i < 4 * kSteps; ++i) asm volatile("" ::"r"(a[i / 4][i % 4]) : "memory");
}
// Ordinary writes to shared memory before this are seen by wgmma and bulk copies after it (and
// after a barrier, where another thread issues them).
__device__ __forceinline__ void fence_shared_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// add false: D = A * B.
template <int kN>
struct Wgmma;

// clang-format off
#define HADAL_D10(t) "%" t "0,%" t "1,%" t "2,%" t "3,%" t "4,%" t "5,%" t "6,%" t "7,%" t "8,%" t "9,"
#define HADAL_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HADAL_R16(i) HADAL_R4(i), HADAL_R4(i + 4), HADAL_R4(i + 8), HADAL_R4(i + 12)
#define HADAL_R32(i) HADAL_R16(i), HADAL_R16(i + 16)
#define HADAL_WGMMA_SHARED(name, shape, type, transposed, D, R, A, B, P)                        \
  static __device__ __forceinline__ void name(Sums& d, std::uint64_t a, std::uint64_t b, bool add) { \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" P ", 0;"                                      \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" D "}, "         \
                 "%" A ", %" B ", p, 1, 1" transposed ";}"                                       \
                 : HADAL_D R : "l"(a), "l"(b), "r"(add ? 1 : 0));                                        \
  }
#define HADAL_WGMMA_REGISTERS(name, shape, type, transposed, D, R, A0, A1, A2, A3, B, P)        \
  static __device__ __forceinline__ void name(Sums& d, const std::uint32_t (&a)[4],             \
                                              std::uint64_t b, bool add) {                      \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" P ", 0;"                                      \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" D "}, "         \
                 "{%" A0 ",%" A1 ",%" A2 ",%" A3 "}, %" B ", p, 1, 1" transposed ";}"            \
                 : HADAL_D R : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));    \
  }
#define HADAL_WGMMA(N, D, R, I0, I1, I2, I3, I4, I5)                                             \
  template <> struct Wgmma<N> {                                                                 \
    using Sums = float[N / 2];                                                                  \
    HADAL_WGMMA_SHARED(bf16, "m64n" #N "k16", "bf16", ", 0, 0", D, R, I0, I1, I2)                \
    HADAL_WGMMA_SHARED(e4m3, "m64n" #N "k32", "e4m3", "", D, R, I0, I1, I2)                      \
    HADAL_WGMMA_REGISTERS(bf16, "m64n" #N "k16", "bf16", ", 0", D, R, I0, I1, I2, I3, I4, I5)    \
    HADAL_WGMMA_REGISTERS(e4m3, "m64n" #N "k32", "e4m3", "", D, R, I0, I1, I2, I3, I4, I5)       \
  };
#define HADAL_D(...) __VA_ARGS__
HADAL_WGMMA(8, "%0,%1,%2,%3",
  (HADAL_R4(0)), "4", "5", "6", "7", "8", "9")
HADAL_WGMMA(16, "%0,%1,%2,%3,%4,%5,%6,%7",
  (HADAL_R4(0), HADAL_R4(4)), "8", "9", "10", "11", "12", "13")
HADAL_WGMMA(32, HADAL_D10("") "%10,%11,%12,%13,%14,%15",
  (HADAL_R16(0)), "16", "17", "18", "19", "20", "21")
HADAL_WGMMA(64, HADAL_D10("") HADAL_D10("1") HADAL_D10("2") "%30,%31",
  (HADAL_R32(0)), "32", "33", "34", "35", "36", "37")
HADAL_WGMMA(96, HADAL_D10("") HADAL_D10("1") HADAL_D10("2") HADAL_D10("3") "%40,%41,%42,%43,%44,%45,%46,%47",
  (HADAL_R32(0), HADAL_R16(32)), "48", "49", "50", "51", "52", "53")
HADAL_WGMMA(128, HADAL_D10("") HADAL_D10("1") HADAL_D10("2") HADAL_D10("3") HADAL_D10("4") HADAL_D10("5") "%60,%61,%62,%63",
  (HADAL_R32(0), HADAL_R32(32)), "64", "65", "66", "67", "68", "69")
HADAL_WGMMA(192, HADAL_D10("") HADAL_D10("1") HADAL_D10("2") HADAL_D10("3") HADAL_D10("4") HADAL_D10("5") HADAL_D10("6") HADAL_D10("7") HADAL_D10("8") "%90,%91,%92,%93,%94,%95",
  (HADAL_R32(0), HADAL_R32(32), HADAL_R32(64)), "96", "97", "98", "99", "100", "101")
HADAL_WGMMA(256, HADAL_D10("") HADAL_D10("1") HADAL_D10("2") HADAL_D10("3") HADAL_D10("4") HADAL_D10("5") HADAL_D10("6") HADAL_D10("7") HADAL_D10("8") HADAL_D10("9") HADAL_D10("10") HADAL_D10("11") "%120,%121,%122,%123,%124,%125,%126,%127",
  (HADAL_R32(0), HADAL_R32(32), HADAL_R32(64), HADAL_R32(96)), "128", "129", "130", "131", "132", "133")
#undef HADAL_WGMMA
#undef HADAL_WGMMA_REGISTERS
#undef HADAL_WGMMA_SHARED
#undef HADAL_D
#undef HADAL_R32
#undef HADAL_R16
#undef HADAL_R4
#undef HADAL_D10
// clang-format on

}  // namespace hadal::kernels::cuda
