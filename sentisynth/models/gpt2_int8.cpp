// Decoding steps of GPT-2 models with weights in 8 bits, and keys and values in fp16.
//
// B rows, E width of the model, H heads of D, S positions, V vocabulary. Everything that is done to
// a row is done to it alone, in the same order whatever stands beside it.
#include "int8.h"

namespace sentisynth {
namespace {

struct Norm {
  const float* weight;
  const float* bias;
};

struct Layer {
  Norm norm_1;
  Linear qkv;  // queries come scaled
  Linear out;
  Norm norm_2;
  Linear up;
  Linear down;
};

struct Model {
  int64_t layers, width, heads, hidden;
  double epsilon;
  const float* wte;    // (V, E)
  const float* wpe;    // (positions, E)
  const Layer* layer;
  Norm norm;
  Linear unembed;
  const float* mean;   // (E,): of the rows of the unembedding, which was taken off them
};

// Keys and values (layers, 2, B, H, S, D), with strides in numbers; `length` positions are filled.
struct Cache {
  uint16_t* both;
  int64_t of_layer, of_part, of_row, of_head, length;
};

// Memory that a thread keeps from one step to the next, handed out in pieces that begin at 64 bytes.
class Scratch {
 public:
  static constexpr int64_t kPiece = 64;

  void begin(int64_t bytes) {
    if (static_cast<int64_t>(kept_.size()) < bytes + kPiece) kept_.resize(bytes + kPiece);
    next_ = kept_.data() + (kPiece - reinterpret_cast<uintptr_t>(kept_.data()) % kPiece) % kPiece;
  }

  template <typename Number>
  Number* take(int64_t n) {
    Number* piece = reinterpret_cast<Number*>(next_);
    next_ += (n * sizeof(Number) + kPiece - 1) / kPiece * kPiece;
    return piece;
  }

 private:
  std::vector<char> kept_;
  char* next_ = nullptr;
};

// Layer norm of one row of n, with the biased variance.
void normed(const float* x, int64_t n, const Norm& norm, double epsilon, float* y) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += kLanes)
    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(n - i), x + i));
  const __m512 mean = _mm512_set1_ps(sum_of(sum) / n);
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = lanes(n - i);
    const __m512 off = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + i), mean);
    squares = _mm512_fmadd_ps(off, off, squares);
  }
  const double variance = sum_of(squares) / n;
  const __m512 factor = _mm512_set1_ps(static_cast<float>(1 / std::sqrt(variance + epsilon)));
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = lanes(n - i);
    const __m512 off = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), mean), factor);
    const __m512 weight = _mm512_maskz_loadu_ps(mask, norm.weight + i);
    const __m512 bias = _mm512_maskz_loadu_ps(mask, norm.bias + i);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_fmadd_ps(off, weight, bias));
  }
}

float dot(const float* x, const float* y, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = lanes(n - i);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i), sum);
  }
  return sum_of(sum);
}

__m512 half(const uint16_t* x, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, x));
}

// The largest that fp16 knows in place of what is larger.
void keep_half(const float* x, int64_t n, uint16_t* to) {
  const __m512 most = _mm512_set1_ps(65504.0f), least = _mm512_set1_ps(-65504.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 mask = lanes(n - i);
    const __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
    const __m256i halves = _mm512_cvtps_ph(_mm512_min_ps(most, _mm512_max_ps(least, value)), 0);
    _mm256_mask_storeu_epi16(to + i, mask, halves);
  }
}

// Attention of one query over n keys and values (n, d). `scores` has room for n, in whole registers.
void attend(const float* query, const uint16_t* keys, const uint16_t* values, int64_t n, int64_t d,
            float* scores, float* out) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t s = 0; s < n; s++) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += kLanes) {
      const __mmask16 mask = lanes(d - i);
      sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, query + i), half(keys + s * d + i, mask), sum);
    }
    scores[s] = sum_of(sum);
    largest = scores[s] > largest ? scores[s] : largest;
  }
  __m512 total = _mm512_setzero_ps();
  for (int64_t s = 0; s < n; s += kLanes) {
    const __mmask16 mask = lanes(n - s);
    const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + s), _mm512_set1_ps(largest));
    const __m512 part = _mm512_maskz_mov_ps(mask, exponential(below));
    _mm512_storeu_ps(scores + s, part);
    total = _mm512_add_ps(total, part);
  }
  const __m512 inverse = _mm512_set1_ps(1 / sum_of(total));
  for (int64_t i = 0; i < d; i += kBlock) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    __mmask16 masks[4];
    for (int c = 0; c < 4; c++) masks[c] = i + c * kLanes < d ? lanes(d - i - c * kLanes) : 0;
    for (int64_t s = 0; s < n; s++) {
      const __m512 share = _mm512_set1_ps(scores[s]);
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++)
        sums[c] = _mm512_fmadd_ps(share, half(values + s * d + i + c * kLanes, masks[c]), sums[c]);
    }
    for (int c = 0; c < 4; c++)
      _mm512_mask_storeu_ps(out + i + c * kLanes, masks[c], _mm512_mul_ps(sums[c], inverse));
  }
}

class Step {
 public:
  Step(const Model& model, const int64_t* tokens, int64_t rows, const Cache& cache, float* logits,
       float* shift, int64_t threads)
      : m_(model), tokens_(tokens), rows_(rows), cache_(cache), logits_(logits), shift_(shift),
        team_(threads) {
    thread_local Scratch scratch;
    const int64_t e = m_.width, hidden = m_.hidden, stride = stride_of(std::max(e, hidden));
    room_ = (cache_.length + 1 + kLanes) / kLanes * kLanes;
    const int64_t numbers = rows * (5 * e + hidden + 2) + threads * (e + room_);
    scratch.begin(4 * numbers + rows * stride + 8 * Scratch::kPiece);
    x_ = scratch.take<float>(rows * e);
    qkv_ = scratch.take<float>(rows * 3 * e);
    attended_ = scratch.take<float>(rows * e);
    hidden_ = scratch.take<float>(rows * hidden);
    own_ = scratch.take<float>(threads * (e + room_));
    bytes_ = {scratch.take<int8_t>(rows * stride), scratch.take<float>(rows),
              scratch.take<int32_t>(rows), stride};
  }

  void operator()() {
    team_.run([this](int64_t thread) { work(thread); });
  }

 private:
  void work(int64_t t) {
    const int64_t e = m_.width, first = team_.begin(t, rows_), last = team_.end(t, rows_);
    float* own = own_ + t * (e + room_);
    for (int64_t b = first; b < last; b++) embed(b);
    for (int64_t l = 0; l < m_.layers; l++) {
      const Layer& layer = m_.layer[l];
      for (int64_t b = first; b < last; b++) norm_and_quantize(b, layer.norm_1, own);
      multiply(t, layer.qkv, qkv_, nullptr);
      const int64_t heads = rows_ * m_.heads;
      for (int64_t i = team_.begin(t, heads); i < team_.end(t, heads); i++)
        attend_head(l, i / m_.heads, i % m_.heads, own + e);
      team_.wait();
      for (int64_t b = first; b < last; b++) quantize(attended_ + b * e, e, bytes_, b);
      multiply(t, layer.out, x_, x_);
      for (int64_t b = first; b < last; b++) norm_and_quantize(b, layer.norm_2, own);
      multiply(t, layer.up, hidden_, nullptr);
      for (int64_t b = first; b < last; b++)
        quantize(hidden_ + b * m_.hidden, m_.hidden, bytes_, b);
      multiply(t, layer.down, x_, x_);
    }
    for (int64_t b = first; b < last; b++) {
      norm_and_quantize(b, m_.norm, own);
      shift_[b] = dot(own, m_.mean, e);
    }
    multiply(t, m_.unembed, logits_, nullptr);
  }

  void embed(int64_t b) {
    const float* token = m_.wte + tokens_[b] * m_.width;
    const float* position = m_.wpe + cache_.length * m_.width;
    for (int64_t i = 0; i < m_.width; i++) x_[b * m_.width + i] = token[i] + position[i];
  }

  void norm_and_quantize(int64_t b, const Norm& norm, float* own) {
    normed(x_ + b * m_.width, m_.width, norm, m_.epsilon, own);
    quantize(own, m_.width, bytes_, b);
  }

  // Between two waits, since it needs rows of all threads and the next part does as well.
  void multiply(int64_t t, const Linear& w, float* y, const float* residual) {
    team_.wait();
    const int64_t blocks = blocks_of(w);
    product(w, bytes_, rows_, team_.begin(t, blocks), team_.end(t, blocks), y, residual);
    team_.wait();
  }

  void attend_head(int64_t l, int64_t b, int64_t h, float* scores) {
    const int64_t e = m_.width, d = e / m_.heads;
    const float* qkv = qkv_ + b * 3 * e + h * d;
    uint16_t* keys = cache_.both + l * cache_.of_layer + b * cache_.of_row + h * cache_.of_head;
    uint16_t* values = keys + cache_.of_part;
    keep_half(qkv + e, d, keys + cache_.length * d);
    keep_half(qkv + 2 * e, d, values + cache_.length * d);
    attend(qkv, keys, values, cache_.length + 1, d, scores, attended_ + b * e + h * d);
  }

  const Model& m_;
  const int64_t* tokens_;
  const int64_t rows_;
  const Cache& cache_;
  float* const logits_;
  float* const shift_;
  Team team_;
  int64_t room_;
  float *x_, *qkv_, *attended_, *hidden_, *own_;
  Rows bytes_;
};

}  // namespace
}  // namespace sentisynth

extern "C" {

// Raised with every change of what the functions below are given, or of a bit of what they give.
int sentisynth_version() { return 1; }

// y (rows, out) = activation(x W^T + b) + residual; x (rows, in), and a residual or none. Not 0
// where there is no memory.
int sentisynth_linear(const sentisynth::Linear* w, const float* x, int64_t rows,
                      const float* residual, float* y, int64_t threads) try {
  using namespace sentisynth;
  const int64_t stride = stride_of(w->in), blocks = blocks_of(*w);
  std::vector<int8_t> bytes(rows * stride);
  std::vector<float> scale(rows);
  std::vector<int32_t> sum(rows);
  const Rows quantized{bytes.data(), scale.data(), sum.data(), stride};
  Team team(threads);
  team.run([&](int64_t t) {
    for (int64_t b = team.begin(t, rows); b < team.end(t, rows); b++)
      quantize(x + b * w->in, w->in, quantized, b);
    team.wait();
    product(*w, quantized, rows, team.begin(t, blocks), team.end(t, blocks), y, residual);
  });
  return 0;
} catch (const std::exception&) {
  return 1;
}

// One token more a row: logits (B, V) without, and shift (B,), their mean, apart. Not 0 where there
// is no memory.
int sentisynth_gpt2_step(const sentisynth::Model* model, const int64_t* tokens, int64_t rows,
                         const sentisynth::Cache* cache, float* logits, float* shift,
                         int64_t threads) try {
  sentisynth::Step(*model, tokens, rows, *cache, logits, shift, threads)();
  return 0;
} catch (const std::exception&) {
  return 1;
}

}  // extern "C"
