// What the operators hand to the kernels: plain pointers and sizes, no PyTorch.
#pragma once

#include <stdint.h>

namespace slw {

struct half { uint16_t bits; };
struct bfloat16 { uint16_t bits; };
template <class T> constexpr bool is_half = false;
template <> constexpr bool is_half<half> = true;
template <class T> constexpr bool is_bfloat16 = false;
template <> constexpr bool is_bfloat16<bfloat16> = true;

enum class Type { f32, f16, bf16, f64 };

// Rows of K scores. Row r is query r % queries of batch entry r / rows_per_batch.
struct Softmax {
  Type type;
  const void* x;  // scores; in the backward pass the gradient
  const void* y;  // backward: the probabilities
  void* out;
  const int64_t* first;  // (B, queries) or null: 0
  const bool* seen;      // masked: one flag per score, by `seen_stride`; rows begin at `seen_rows`[row]
  const int64_t* seen_sizes;
  const int64_t* seen_strides;
  int64_t seen_dims, seen_stride;
  int64_t queries, keys, rows, rows_per_batch;
  double scale;
  int64_t past_bytes;  // outputs of at least this size are written past the caches
};

struct LayerNorm {
  Type type;
  const void* x;         // forward: input; backward: what was normalised
  const void* residual;  // forward: added to x, or null
  const void* grad;
  const void* grad_total;  // backward: added to the result, or null
  void* y;                 // forward: normalised; backward: gradient of x
  void* total;             // forward: x + residual, or null
  void* mean;              // fp32, fp64 for fp64
  void* rstd;
  const void* weight;  // in the compute type
  const void* bias;
  void* partial;  // backward: (blocks, 2, C) in the compute type
  int64_t rows, columns, block;
  double eps;
  int64_t past_bytes;
};

struct BiasGelu {
  Type type;
  const void* x;
  const void* bias;  // in the compute type
  const void* grad;
  void* out;
  void* partial;  // backward: (blocks, C)
  int64_t rows, columns, block;
  bool tanh;
  int64_t past_bytes;
};

struct Dropout {
  Type type;
  const void* x;  // forward: input; backward: gradient
  const void* bias;  // in the compute type, or null
  const void* residual;  // forward only
  void* out;
  void* partial;  // backward: (blocks, C), or null
  uint64_t seed;
  uint32_t threshold;  // words below it are dropped
  double factor;
  bool drop;
  int64_t rows, columns, block;
  int64_t past_bytes;
};

struct CrossEntropy {
  Type type;
  const void* logits;
  int64_t row_stride;
  const int64_t* labels;
  int64_t start;
  void* top;  // compute type
  void* total;
  void* target;
  const void* grad;  // backward, compute type
  void* out;            // backward: rows of `width`, zero from `columns` on
  int64_t rows, columns, width;
  int64_t past_bytes;
};

struct Kernels {
  const char* name;
  void (*causal_softmax)(const Softmax&, int64_t begin, int64_t end);
  void (*causal_softmax_backward)(const Softmax&, int64_t begin, int64_t end);
  void (*masked_softmax)(const Softmax&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNorm&, int64_t begin, int64_t end);
  void (*layer_norm_backward)(const LayerNorm&, int64_t begin, int64_t end);
  void (*bias_gelu)(const BiasGelu&, int64_t begin, int64_t end);
  void (*bias_gelu_backward)(const BiasGelu&, int64_t begin, int64_t end);
  void (*dropout)(const Dropout&, int64_t begin, int64_t end);
  void (*dropout_backward)(const Dropout&, int64_t begin, int64_t end);
  void (*cross_entropy)(const CrossEntropy&, int64_t begin, int64_t end);
  void (*cross_entropy_backward)(const CrossEntropy&, int64_t begin, int64_t end);
};

// The kernels of the best instruction set that this processor has.
const Kernels& kernels();

}  // namespace slw
