// Softmax of attention scores on CUDA: megatron_slw/ops/softmax.py.
//
// A row lies in the registers of a group of threads and is read once; packs that are masked altogether are neither read
// nor exponentiated. Rows that are no whole number of packs, or longer than 16,384, are read two or three times instead.
#include "cuda/common.cuh"

namespace slw {
namespace cuda {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

struct Rows {
  int64_t rows, keys;
  uint32_t queries, rows_per_batch;  // 32 bits: a division of 64 is a call
  const int64_t* first;              // or null
};

struct Range { int64_t first, last; };

__device__ __forceinline__ Range seen_range(const Rows& a, int64_t row) {
  const uint32_t number = static_cast<uint32_t>(row), query = number % a.queries;
  Range r{0, query + a.keys - a.queries + 1};
  if (a.first) {
    const int64_t place = static_cast<int64_t>(number / a.rows_per_batch) * a.queries + query;
    r.first = max(int64_t(0), min(a.first[place], r.last));
  }
  return r;
}

struct Short { int first, last; };  // of a row in registers

template <class T, int V, int Threads, int Items>
__global__ void __launch_bounds__(Threads < 128 ? 128 : Threads, Threads < 128 ? 4 : 512 / Threads)
    forward_rows(const T* __restrict__ x, T* __restrict__ y, Rows a, float factor) {
  __shared__ float room[33];
  constexpr int kGroups = Threads < 128 ? 128 / Threads : 1;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / Threads;
  const bool exists = row < a.rows;  // no early return: the group's shuffles name the whole warp
  const int lane = threadIdx.x % Threads;
  const Range range = exists ? seen_range(a, row) : Range{0, 0};
  const Short seen{static_cast<int>(range.first), static_cast<int>(range.last)};
  const T* from = x + row * a.keys;
  T* to = y + row * a.keys;
  Pack<T, V> packs[Items];
  float high = -INFINITY;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
    if (j < seen.last && j + V > seen.first) packs[k] = load<V>(from + j);
  }
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (j + i >= seen.first && j + i < seen.last) high = fmaxf(high, packs[k][i] * factor);
  }
  high = reduce<Threads>(high, Max{}, room);
  float e[Items * V], total = 0;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool used = j + i >= seen.first && j + i < seen.last && high > -INFINITY;
      e[k * V + i] = used ? exp2f(fmaf(packs[k][i], factor, -high)) : 0.0f;
      total += e[k * V + i];
    }
  }
  total = reduce<Threads>(total, Sum{}, room);
  const float share = total > 0.0f || total != total ? __fdividef(1.0f, total) : 0.0f;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
    Pack<T, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result.set(i, e[k * V + i] * share);
    if (exists && j < static_cast<int>(a.keys)) store<V>(to + j, result);
  }
}

template <class T, int V, int Threads, int Items>
__global__ void __launch_bounds__(Threads < 128 ? 128 : Threads, Threads < 128 ? 4 : 512 / Threads)
    backward_rows(const T* __restrict__ g, const T* __restrict__ y, T* __restrict__ dx, Rows a, float scale) {
  __shared__ float room[33];
  constexpr int kGroups = Threads < 128 ? 128 / Threads : 1;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / Threads;
  const bool exists = row < a.rows;
  const int lane = threadIdx.x % Threads;
  const Range range = exists ? seen_range(a, row) : Range{0, 0};
  const Short seen{static_cast<int>(range.first), static_cast<int>(range.last)};
  Pack<T, V> grads[Items], shares[Items];
  float dot = 0;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
    if (j < seen.last && j + V > seen.first) {
      grads[k] = load<V>(g + row * a.keys + j);
      shares[k] = load<V>(y + row * a.keys + j);
    }
  }
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (j + i >= seen.first && j + i < seen.last) dot += grads[k][i] * shares[k][i];
  }
  dot = reduce<Threads>(dot, Sum{}, room);
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
    Pack<T, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool used = j + i >= seen.first && j + i < seen.last;
      result.set(i, used ? scale * shares[k][i] * (grads[k][i] - dot) : 0.0f);
    }
    if (exists && j < static_cast<int>(a.keys)) store<V>(dx + row * a.keys + j, result);
  }
}

struct Mask {
  const bool* seen;  // null: every key of the range
  int64_t sizes[8], strides[8];
  int dims;
  int64_t key_stride;
};

__device__ __forceinline__ const bool* mask_row(const Mask& m, int64_t row) {
  const bool* p = m.seen;
#pragma unroll
  for (int d = 7; d >= 0; --d)
    if (d < m.dims) {
      p += row % m.sizes[d] * m.strides[d];
      row /= m.sizes[d];
    }
  return p;
}

// Any size, alignment and mask; a row per block.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads)
    any_forward(const T* __restrict__ x, T* __restrict__ y, Rows a, Mask mask, float factor) {
  __shared__ float room[33];
  const int64_t row = blockIdx.x;
  const Range seen = mask.seen ? Range{0, a.keys} : seen_range(a, row);
  const bool* flags = mask.seen ? mask_row(mask, row) : nullptr;
  const T* from = x + row * a.keys;
  T* to = y + row * a.keys;
  float high = -INFINITY;
  for (int64_t j = seen.first + threadIdx.x; j < seen.last; j += Threads)
    if (!flags || flags[j * mask.key_stride]) high = fmaxf(high, widen(from[j]) * factor);
  high = reduce<Threads>(high, Max{}, room);
  float total = 0;
  if (high > -INFINITY)
    for (int64_t j = seen.first + threadIdx.x; j < seen.last; j += Threads)
      if (!flags || flags[j * mask.key_stride]) total += exp2f(fmaf(widen(from[j]), factor, -high));
  total = reduce<Threads>(total, Sum{}, room);
  const float share = high > -INFINITY ? 1.0f / total : 0.0f;
  for (int64_t j = threadIdx.x; j < a.keys; j += Threads) {
    const bool used = j >= seen.first && j < seen.last && high > -INFINITY && (!flags || flags[j * mask.key_stride]);
    to[j] = narrow<T>(used ? exp2f(fmaf(widen(from[j]), factor, -high)) * share : 0.0f);
  }
}

template <class T, int Threads>
__global__ void __launch_bounds__(Threads)
    any_backward(const T* __restrict__ g, const T* __restrict__ y, T* __restrict__ dx, Rows a, float scale) {
  __shared__ float room[33];
  const int64_t row = blockIdx.x, at = row * a.keys;
  const Range seen = seen_range(a, row);
  float dot = 0;
  for (int64_t j = seen.first + threadIdx.x; j < seen.last; j += Threads) dot += widen(g[at + j]) * widen(y[at + j]);
  dot = reduce<Threads>(dot, Sum{}, room);
  for (int64_t j = threadIdx.x; j < a.keys; j += Threads) {
    const bool used = j >= seen.first && j < seen.last;
    dx[at + j] = narrow<T>(used ? scale * widen(y[at + j]) * (widen(g[at + j]) - dot) : 0.0f);
  }
}

// f(threads per row, elements per thread) as constants, for rows in registers.
template <class F> void with_shape(int64_t keys, F f) {
  using std::integral_constant;
  if (keys <= 8) f(integral_constant<int, 1>{}, integral_constant<int, 8>{});
  else if (keys <= 16) f(integral_constant<int, 2>{}, integral_constant<int, 8>{});
  else if (keys <= 32) f(integral_constant<int, 4>{}, integral_constant<int, 8>{});
  else if (keys <= 64) f(integral_constant<int, 8>{}, integral_constant<int, 8>{});
  else if (keys <= 256) f(integral_constant<int, 32>{}, integral_constant<int, 8>{});
  else if (keys <= 1024) f(integral_constant<int, 32>{}, integral_constant<int, 32>{});
  else if (keys <= 4096) f(integral_constant<int, 128>{}, integral_constant<int, 32>{});
  else f(integral_constant<int, 512>{}, integral_constant<int, 32>{});
}

void check_rows(int64_t rows) { STD_TORCH_CHECK(rows < (int64_t(1) << 31), "softmax: more than 2^31 rows"); }

Rows rows_of(const Tensor& scores, double scale, const std::optional<Tensor>& first) {
  const int64_t dims = scores.dim();
  STD_TORCH_CHECK(dims >= 2, "causal_softmax needs (..., Q, K) scores");
  STD_TORCH_CHECK(scale != 0.0, "causal_softmax: the scale is 0");
  Rows a{};
  const int64_t queries = scores.size(dims - 2);
  a.keys = scores.size(dims - 1);
  STD_TORCH_CHECK(queries <= a.keys, "causal_softmax: ", queries, " queries see only ", a.keys, " keys");
  a.rows = a.keys ? scores.numel() / a.keys : 0;
  check_rows(a.rows);
  a.queries = static_cast<uint32_t>(queries);
  a.rows_per_batch = static_cast<uint32_t>(
      std::max<int64_t>(1, dims > 2 && scores.size(0) ? a.rows / scores.size(0) : a.rows));
  if (first.has_value()) {
    STD_TORCH_CHECK(
        dims >= 3 && first->dim() == 2 && first->size(0) == scores.size(0) && first->size(1) == queries,
        "causal_softmax: first must be (B, Q) = (", scores.size(0), ", ", queries, ")");
    a.first = in<int64_t>(first);
  }
  return a;
}

Tensor causal_softmax(const Tensor& scores, double scale, const std::optional<Tensor>& first) {
  const Tensor x = dense(scores);
  const std::optional<Tensor> starts = dense(first, ScalarType::Long);
  const Rows a = rows_of(x, scale, starts);
  Tensor y = empty(x);
  if (!a.rows) return y;
  const Guard guard(x.get_device_index());
  const cudaStream_t stream = stream_of(x);
  const float factor = static_cast<float>(scale) * kLog2e;
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (a.keys > 16384 || !packs<T>(a.keys, a.keys, {x.const_data_ptr(), y.const_data_ptr()})) {
      any_forward<T, 256><<<blocks_for(a.rows, 1), 256, 0, stream>>>(in<T>(x), out<T>(y), a, Mask{}, factor);
      return;
    }
    with_shape(a.keys, [&](auto threads, auto elements) {
      constexpr int kThreads = decltype(threads)::value, kGroups = kThreads < 128 ? 128 / kThreads : 1;
      constexpr int kItems = decltype(elements)::value / kFull<T>;
      forward_rows<T, kFull<T>, kThreads, kItems>
          <<<blocks_for(a.rows, kGroups), kThreads * kGroups, 0, stream>>>(in<T>(x), out<T>(y), a, factor);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

void launch_backward(const Tensor& g, const Tensor& y, Tensor& dx, const Rows& a, double scale) {
  if (!a.rows) return;
  const Guard guard(y.get_device_index());
  const cudaStream_t stream = stream_of(y);
  with_type(y, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const float factor = static_cast<float>(scale);
    if (a.keys > 16384 ||
        !packs<T>(a.keys, a.keys, {g.const_data_ptr(), y.const_data_ptr(), dx.const_data_ptr()})) {
      any_backward<T, 256><<<blocks_for(a.rows, 1), 256, 0, stream>>>(in<T>(g), in<T>(y), out<T>(dx), a, factor);
      return;
    }
    with_shape(a.keys, [&](auto threads, auto elements) {
      constexpr int kThreads = decltype(threads)::value, kGroups = kThreads < 128 ? 128 / kThreads : 1;
      constexpr int kItems = decltype(elements)::value / kFull<T>;
      backward_rows<T, kFull<T>, kThreads, kItems>
          <<<blocks_for(a.rows, kGroups), kThreads * kGroups, 0, stream>>>(in<T>(g), in<T>(y), out<T>(dx), a, factor);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor causal_softmax_backward(
    const Tensor& grad, const Tensor& output, double scale, const std::optional<Tensor>& first) {
  const Tensor y = dense(output), g = dense(grad, output.scalar_type());
  const std::optional<Tensor> starts = dense(first, ScalarType::Long);
  Tensor dx = empty(y);
  launch_backward(g, y, dx, rows_of(y, scale, starts), scale);
  return dx;
}

Tensor masked_softmax(const Tensor& scores, const Tensor& seen, double scale) {
  STD_TORCH_CHECK(seen.scalar_type() == ScalarType::Bool, "masked_softmax needs a bool mask");
  STD_TORCH_CHECK(scale != 0.0, "masked_softmax: the scale is 0");
  STD_TORCH_CHECK(
      scores.dim() >= 1 && scores.dim() <= 9 && seen.dim() <= scores.dim(), "masked_softmax: too many axes");
  const Tensor x = dense(scores);
  const int64_t dims = x.dim(), missing = dims - seen.dim();
  Rows a{};
  a.keys = x.size(dims - 1);
  a.rows = a.keys ? x.numel() / a.keys : 0;
  check_rows(a.rows);
  Mask mask{};
  mask.seen = static_cast<const bool*>(seen.const_data_ptr());
  mask.dims = static_cast<int>(dims - 1);
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = d < missing ? 1 : seen.size(d - missing);
    STD_TORCH_CHECK(size == 1 || size == x.size(d), "masked_softmax: the mask does not broadcast to the scores");
    const int64_t stride = size == 1 ? 0 : seen.stride(d - missing);
    if (d == dims - 1) {
      mask.key_stride = stride;
    } else {
      mask.sizes[d] = x.size(d);
      mask.strides[d] = stride;
    }
  }
  Tensor y = empty(x);
  if (!a.rows) return y;
  const Guard guard(x.get_device_index());
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    any_forward<T, 128><<<blocks_for(a.rows, 1), 128, 0, stream_of(x)>>>(
        in<T>(x), out<T>(y), a, mask, static_cast<float>(scale) * kLog2e);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

// Without a mask: where a key is not seen the probability is 0, and so is the gradient.
Tensor masked_softmax_backward(const Tensor& grad, const Tensor& output, double scale) {
  const Tensor y = dense(output), g = dense(grad, output.scalar_type());
  Rows a{};
  a.queries = 1;
  a.keys = y.size(y.dim() - 1);
  a.rows = a.keys ? y.numel() / a.keys : 0;
  check_rows(a.rows);
  a.rows_per_batch = static_cast<uint32_t>(std::max<int64_t>(1, a.rows));
  Tensor dx = empty(y);
  launch_backward(g, y, dx, a, scale);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CUDA, m) {
  m.impl("causal_softmax", TORCH_BOX(&causal_softmax));
  m.impl("causal_softmax_backward", TORCH_BOX(&causal_softmax_backward));
  m.impl("masked_softmax", TORCH_BOX(&masked_softmax));
  m.impl("masked_softmax_backward", TORCH_BOX(&masked_softmax_backward));
}

}  // namespace cuda
}  // namespace slw
