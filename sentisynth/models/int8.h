// Rows in 8 bits and their products with weights in 8 bits, for CPUs with AVX-512 VNNI.
//
// A row x is kept as signed bytes q with one scale, x ~ scale * q. A weight w of a row of W is kept
// as the unsigned byte w + 128, since the instruction multiplies unsigned by signed bytes; what the
// 128 adds is 128 times the sum of q, which is known for the row and taken off at the end. Sums are
// exact, in 32 bits.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <sched.h>
#include <thread>
#include <vector>

namespace sentisynth {

constexpr int64_t kLanes = 16;   // floats of a register
constexpr int64_t kBlock = 64;   // rows of W that are multiplied at once: four registers
constexpr int kTile = 6;         // rows of x that are multiplied at once

enum Activation : int64_t { kNone = 0, kRelu = 1, kGeluTanh = 2 };

// W (out, in) as blocks of 64 rows: (out / 64, in / 4, 64, 4) bytes. `scale` and `bias`, (out,), are
// filled up with zeros to whole blocks, like W itself, whose zero is 128.
struct Linear {
  const uint8_t* weight;
  const float* scale;
  const float* bias;
  int64_t in;
  int64_t out;
  int64_t activation;
};

inline __mmask16 lanes(int64_t left) {
  return left >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1u);
}

// The sum of the lanes, in an order that no compiler chooses.
inline float sum_of(__m512 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// e^x, of x above -87, to about 1e-7 of itself: 2^n times a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
inline __m512 exponential(__m512 x) {
  // of two the second where one is no number
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// y (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (y + 0.044715 y^3), as y / (1 + e^(-2u)): Hendrycks and
// Gimpel, "Gaussian Error Linear Units", section 2.
inline __m512 gelu_tanh(__m512 y) {
  const __m512 square = _mm512_mul_ps(y, y);
  const __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
  const __m512 u = _mm512_mul_ps(_mm512_mul_ps(y, inner), _mm512_set1_ps(-1.59576912f));
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(y, _mm512_add_ps(one, exponential(u)));
}

// Rows in 8 bits: `stride` bytes a row, of which those up to the next 16 after `in` are zero.
struct Rows {
  int8_t* bytes;
  float* scale;
  int32_t* sum;
  int64_t stride;
};

inline int64_t stride_of(int64_t in) { return (in + 63) / 64 * 64; }

// One row of n floats in 8 bits, its largest magnitude 127. A row that holds what is no number, or
// infinite, has a scale that is no number, and so has every product of it.
inline void quantize(const float* x, int64_t n, const Rows& to, int64_t row) {
  __m512 largest = _mm512_setzero_ps();
  __mmask16 odd = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const __m512 size = _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(n - i), x + i));
    odd |= _mm512_cmp_ps_mask(size, _mm512_set1_ps(FLT_MAX), _CMP_NLE_UQ);
    largest = _mm512_max_ps(largest, size);
  }
  const float scale = std::max(_mm512_reduce_max_ps(largest), FLT_MIN * 127) / 127;
  const __m512 divisor = _mm512_set1_ps(scale);
  int8_t* bytes = to.bytes + row * to.stride;
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = lanes(n - i);
    const __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, x + i), divisor);
    const __m512i rounded = odd ? _mm512_setzero_si512() : _mm512_cvtps_epi32(value);
    sum = _mm512_add_epi32(sum, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + i), _mm512_cvtsepi32_epi8(rounded));
  }
  to.scale[row] = odd ? std::numeric_limits<float>::quiet_NaN() : scale;
  to.sum[row] = _mm512_reduce_add_epi32(sum);
}

// y (R, 64) = activation(x W^T + b) + residual, of R rows of x from `row` on and one block of W.
template <int R>
inline void tile(const Linear& w, const Rows& x, int64_t row, int64_t block, float* y,
                 const float* residual) {
  const int64_t quads = (w.in + 3) / 4;
  const uint8_t* weight = w.weight + block * quads * kBlock * 4;
  const int8_t* bytes = x.bytes + row * x.stride;
  __m512i sums[R][4];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) sums[r][c] = _mm512_setzero_si512();
  for (int64_t q = 0; q < quads; q++, weight += kBlock * 4) {
    __m512i column[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) column[c] = _mm512_loadu_si512(weight + 64 * c);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      int32_t four;
      std::memcpy(&four, bytes + r * x.stride + 4 * q, 4);
      const __m512i all = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], column[c], all);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    const __m512i shift = _mm512_set1_epi32(128 * x.sum[row + r]);
    const __m512 scale = _mm512_set1_ps(x.scale[row + r]);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const int64_t at = block * kBlock + c * kLanes;
      if (at >= w.out) continue;
      const __m512 product = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][c], shift));
      const __m512 both = _mm512_mul_ps(scale, _mm512_loadu_ps(w.scale + at));
      __m512 out = _mm512_fmadd_ps(product, both, _mm512_loadu_ps(w.bias + at));
      if (w.activation == kRelu) out = _mm512_max_ps(_mm512_setzero_ps(), out);
      if (w.activation == kGeluTanh) out = gelu_tanh(out);
      const __mmask16 mask = lanes(w.out - at);
      const int64_t place = (row + r) * w.out + at;
      if (residual) out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(mask, residual + place));
      _mm512_mask_storeu_ps(y + place, mask, out);
    }
  }
}

// The blocks of W from `begin` to `end`, of all rows. y may be the residual.
inline void product(const Linear& w, const Rows& x, int64_t rows, int64_t begin, int64_t end,
                    float* y, const float* residual) {
  for (int64_t block = begin; block < end; block++) {
    int64_t row = 0;
    for (; row + kTile <= rows; row += kTile) tile<kTile>(w, x, row, block, y, residual);
    switch (rows - row) {
      case 5: tile<5>(w, x, row, block, y, residual); break;
      case 4: tile<4>(w, x, row, block, y, residual); break;
      case 3: tile<3>(w, x, row, block, y, residual); break;
      case 2: tile<2>(w, x, row, block, y, residual); break;
      case 1: tile<1>(w, x, row, block, y, residual); break;
      default: break;
    }
  }
}

// Threads that work on the same step and wait for each other between its parts.
class Team {
 public:
  explicit Team(int64_t most) : most_(most) {}

  // `work(thread)` by as many threads as can be had, this one among them.
  template <typename Work>
  void run(const Work& work) {
    std::vector<std::thread> others;
    others.reserve(most_ - 1);
    std::atomic<bool> begun{false};
    try {
      for (int64_t i = 1; i < most_; i++)
        others.emplace_back([&work, &begun, i] {
          pause_until([&begun] { return begun.load(std::memory_order_acquire); });
          work(i);
        });
    } catch (const std::exception&) {  // no more threads: the others do the work
    }
    n_ = static_cast<int64_t>(others.size()) + 1;
    begun.store(true, std::memory_order_release);
    work(0);
    for (auto& other : others) other.join();
  }

  void wait() {
    if (n_ == 1) return;
    const int64_t turn = turn_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    pause_until([this, turn] { return turn_.load(std::memory_order_acquire) != turn; });
  }

  // The part of `total` that is this thread's.
  int64_t begin(int64_t thread, int64_t total) const { return total * thread / n_; }
  int64_t end(int64_t thread, int64_t total) const { return total * (thread + 1) / n_; }

 private:
  template <typename Is>
  static void pause_until(const Is& is) {
    for (int64_t spins = 0; !is(); spins++)
      if (spins < kSpins)
        _mm_pause();
      else
        sched_yield();
  }

  static constexpr int64_t kSpins = 256;  // some ten microseconds
  const int64_t most_;
  int64_t n_ = 1;
  std::atomic<int64_t> arrived_{0};
  std::atomic<int64_t> turn_{0};
};

inline int64_t blocks_of(const Linear& w) { return (w.out + kBlock - 1) / kBlock; }

}  // namespace sentisynth
