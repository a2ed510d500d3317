// Cross-entropy over the columns of one rank, on CUDA: megatron_slw/ops/cross_entropy.py.
//
// A block per row. Packs are loaded to the last whole one of the row's width; only the first `columns` elements count,
// and the gradient of the others is zero. The forward pass reads the row once: each thread keeps a maximum and a sum that it rescales when the
// maximum rises.
#include "cuda/common.cuh"

#include <tuple>

namespace slw {
namespace cuda {
namespace {

constexpr int kThreads = 512, kUnroll = 2;
constexpr float kLog2e = 1.4426950408889634f;

template <class T, int V>
__global__ void __launch_bounds__(kThreads) statistics_rows(
    const T* __restrict__ logits, const int64_t* __restrict__ labels, int64_t start, int64_t stride, int64_t columns,
    float* __restrict__ tops, float* __restrict__ totals, float* __restrict__ targets) {
  __shared__ float room[33];
  const int64_t row = blockIdx.x;
  const T* x = logits + row * stride;
  float top = -INFINITY, total = 0;
  const int64_t step = static_cast<int64_t>(kThreads) * V;
  for (int64_t j = static_cast<int64_t>(threadIdx.x) * V; j < columns; j += kUnroll * step) {
    Pack<T, V> packs[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (j + k * step < columns) packs[k] = load<V>(x + j + k * step);
    float high = top;
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (j + k * step + i < columns) high = fmaxf(high, packs[k][i]);
    if (high > top) {
      total *= exp2f((top - high) * kLog2e);  // 0 the first time: top is -inf, and so is total 0
      top = high;
    }
    const float offset = top == -INFINITY ? 0.0f : top;  // -inf - -inf would be NaN
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (j + k * step + i < columns) total += exp2f((packs[k][i] - offset) * kLog2e);
  }
  const float highest = reduce<kThreads>(top, Max{}, room);
  const float factor = top == -INFINITY ? 1.0f : exp2f((top - highest) * kLog2e);  // there total is 0 or NaN
  total = reduce<kThreads>(total * factor, Sum{}, room);
  if (threadIdx.x) return;
  tops[row] = highest;
  totals[row] = total;
  const int64_t column = labels[row] - start;
  targets[row] = column >= 0 && column < columns ? widen(x[column]) : 0.0f;
}

// (exp(x - top) / total - 1 at the label) x grad, and zero from `columns` to `width`
template <class T, int V>
__global__ void __launch_bounds__(kThreads) backward_rows(
    const float* __restrict__ grads, const T* __restrict__ logits, const int64_t* __restrict__ labels,
    const float* __restrict__ tops, const float* __restrict__ totals, int64_t start, int64_t stride, int64_t columns,
    int64_t width, T* __restrict__ out) {
  const int64_t row = blockIdx.x, column = labels[row] - start;
  const float grad = grads[row], top = tops[row], share = grad / totals[row];
  const int64_t step = static_cast<int64_t>(kThreads) * V;
  for (int64_t j = static_cast<int64_t>(threadIdx.x) * V; j < width; j += kUnroll * step) {
    Pack<T, V> packs[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (j + k * step < columns) packs[k] = load<V>(logits + row * stride + j + k * step);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t at = j + k * step;
      if (at >= width) break;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (at + i >= columns) {
          packs[k].set(i, 0.0f);
          continue;
        }
        const float value = exp2f((packs[k][i] - top) * kLog2e) * share;
        packs[k].set(i, at + i == column ? value - grad : value);
      }
      store<V>(out + row * width + at, packs[k]);
    }
  }
}

// The rows may be slices of wider ones: a copy would be what the operator exists to avoid.
Tensor readable(const Tensor& logits) {
  return logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) <= 1) ? logits : dense(logits);
}

void check(const Tensor& logits, const Tensor& labels, int64_t columns) {
  STD_TORCH_CHECK(
      logits.dim() == 2 && labels.dim() == 1 && labels.size(0) == logits.size(0),
      "cross_entropy needs (N, v) logits and (N,) labels");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "cross_entropy needs int64 labels");
  STD_TORCH_CHECK(0 <= columns && columns <= logits.size(1), "cross_entropy: ", columns, " of ", logits.size(1), " columns");
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_statistics(
    const Tensor& logits, const Tensor& labels, int64_t start, int64_t columns) {
  check(logits, labels, columns);
  const Tensor x = readable(logits), l = dense(labels);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor top = empty(x, {rows}, ScalarType::Float), total = empty(x, {rows}, ScalarType::Float);
  Tensor target = empty(x, {rows}, ScalarType::Float);
  if (!rows) return {top, total, target};
  const Guard guard(x.get_device_index());
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const auto launch = [&](auto v) {
      statistics_rows<T, decltype(v)::value><<<blocks_for(rows, 1), kThreads, 0, stream_of(x)>>>(
          in<T>(x), in<int64_t>(l), start, x.stride(0), columns, out<float>(top), out<float>(total), out<float>(target));
    };
    if (packs<T>(width, x.stride(0), {x.const_data_ptr()})) launch(std::integral_constant<int, kFull<T>>{});
    else launch(std::integral_constant<int, 1>{});
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {top, total, target};
}

Tensor cross_entropy_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& labels, const Tensor& top, const Tensor& total,
    int64_t start, int64_t columns) {
  check(logits, labels, columns);
  const Tensor x = readable(logits), l = dense(labels), g = dense(grad, ScalarType::Float);
  const Tensor t = dense(top, ScalarType::Float), s = dense(total, ScalarType::Float);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor result = empty(x, {rows, width}, x.scalar_type());
  if (!rows || !width) return result;
  const Guard guard(x.get_device_index());
  with_type(x, [&](auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    const auto launch = [&](auto v) {
      backward_rows<T, decltype(v)::value><<<blocks_for(rows, 1), kThreads, 0, stream_of(x)>>>(
          in<float>(g), in<T>(x), in<int64_t>(l), in<float>(t), in<float>(s), start, x.stride(0), columns, width,
          out<T>(result));
    };
    if (packs<T>(width, x.stride(0), {x.const_data_ptr(), result.const_data_ptr()}))
      launch(std::integral_constant<int, kFull<T>>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CUDA, m) {
  m.impl("cross_entropy_statistics", TORCH_BOX(&cross_entropy_statistics));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace cuda
}  // namespace slw
