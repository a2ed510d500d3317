// LayerNorm on CUDA, alone and with the residual addition before it: megatron_slw/ops/layer_norm.py.
//
// A row lies in the registers of a group of threads and is read once. In the backward pass a block stays on its
// multiprocessor and takes row after row, loading the next one while it computes; a thread owns the same columns
// throughout, so that the gradients of weight and bias are sums in its registers, added up over the block and written
// once: two blocks of 256 threads per multiprocessor leave few partial sums to read again.
#include "cuda/common.cuh"

#include <tuple>

namespace slw {
namespace cuda {
namespace {

template <class T, int V, int Threads, int Items, bool Add>
__global__ void __launch_bounds__(Threads < 128 ? 128 : Threads) forward_rows(
    const T* __restrict__ x, const T* __restrict__ residual, const float* __restrict__ weight,
    const float* __restrict__ bias, T* __restrict__ y, T* __restrict__ total, float* __restrict__ means,
    float* __restrict__ rstds, int64_t rows, int columns, float eps) {
  __shared__ float room[33];
  constexpr int kGroups = Threads < 128 ? 128 / Threads : 1;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / Threads;
  const bool exists = row < rows;
  const int lane = threadIdx.x % Threads, limit = exists ? columns : 0;
  const int64_t at = row * columns;
  Pack<T, V> packs[Items];
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
    if (j < limit) packs[k] = load<V>(x + at + j);
  }
  if constexpr (Add) {
#pragma unroll
    for (int k = 0; k < Items; ++k) {
      const int j = (k * Threads + lane) * V;
      if (j >= limit) continue;
      const Pack<T, V> more = load<V>(residual + at + j);
#pragma unroll
      for (int i = 0; i < V; ++i) packs[k].set(i, packs[k][i] + more[i]);
      store<V>(total + at + j, packs[k]);
    }
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < Items; ++k)
    if ((k * Threads + lane) * V < limit) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum += packs[k][i];
    }
  const float mean = reduce<Threads>(sum, Sum{}, room) / columns;
  float squares = 0;
#pragma unroll
  for (int k = 0; k < Items; ++k)
    if ((k * Threads + lane) * V < limit) {
#pragma unroll
      for (int i = 0; i < V; ++i) squares += (packs[k][i] - mean) * (packs[k][i] - mean);
    }
  const float rstd = rsqrtf(reduce<Threads>(squares, Sum{}, room) / columns + eps);
  if (exists && lane == 0) {
    means[row] = mean;
    rstds[row] = rstd;
  }
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * Threads + lane) * V;
    if (j >= limit) continue;
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const Pack<float, 4> w = load<4>(weight + j + i), b = load<4>(bias + j + i);
#pragma unroll
      for (int m = 0; m < 4; ++m) packs[k].set(i + m, (packs[k][i + m] - mean) * rstd * w[m] + b[m]);
    }
    store<V>(y + at + j, packs[k]);
  }
}

// Any width and alignment; a row per block, read three times.
template <class T, bool Add>
__global__ void __launch_bounds__(256) any_forward(
    const T* x, const T* residual, const float* weight, const float* bias, T* y, T* total, float* means, float* rstds,
    int64_t columns, float eps) {
  __shared__ float room[33];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * columns;
  const T* from = Add ? total + at : x + at;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += 256) {
    if constexpr (Add) total[at + j] = narrow<T>(widen(x[at + j]) + widen(residual[at + j]));
    sum += widen(from[j]);
  }
  const float mean = reduce<256>(sum, Sum{}, room) / columns;
  float squares = 0;
  for (int64_t j = threadIdx.x; j < columns; j += 256) squares += (widen(from[j]) - mean) * (widen(from[j]) - mean);
  const float rstd = rsqrtf(reduce<256>(squares, Sum{}, room) / columns + eps);
  if (threadIdx.x == 0) {
    means[blockIdx.x] = mean;
    rstds[blockIdx.x] = rstd;
  }
  for (int64_t j = threadIdx.x; j < columns; j += 256)
    y[at + j] = narrow<T>((widen(from[j]) - mean) * rstd * weight[j] + bias[j]);
}

// Sums of two numbers over `Warps` warps of a group. `room` holds 2 x 2 x 32 floats and is used by turns, so that one
// barrier per row is enough.
template <int Warps> __device__ __forceinline__ float2 reduce_two(float2 v, float2* room, int turn) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    v.x += __shfl_xor_sync(~0u, v.x, step);
    v.y += __shfl_xor_sync(~0u, v.y, step);
  }
  if constexpr (Warps > 1) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float2* place = room + turn * 32;
    if (lane == 0) place[warp] = v;
    __syncthreads();
    v = place[warp / Warps * Warps + lane % Warps];
#pragma unroll
    for (int step = Warps / 2; step > 0; step /= 2) {
      v.x += __shfl_xor_sync(~0u, v.x, step);
      v.y += __shfl_xor_sync(~0u, v.y, step);
    }
  }
  return v;
}

template <int Warps> constexpr int kBackwardGroups = Warps < 8 ? 8 / Warps : 1;  // rows that a block has in hand
template <int Warps> constexpr int kBackwardThreads = Warps * 32 * kBackwardGroups<Warps>;

// partial: (blocks, 2, columns)
template <class T, int V, int Warps, int Items, bool Add>
__global__ void __launch_bounds__(kBackwardThreads<Warps>, 512 / kBackwardThreads<Warps>) backward_rows(
    const T* __restrict__ g, const T* __restrict__ more, const T* __restrict__ x, const float* __restrict__ means,
    const float* __restrict__ rstds, const float* __restrict__ weight, T* __restrict__ dx, float* __restrict__ partial,
    int64_t rows, int columns) {
  constexpr int kThreads = Warps * 32, kGroups = kBackwardGroups<Warps>, kOwn = Items * V;
  __shared__ float2 room[64];
  const int group = threadIdx.x / kThreads, lane = threadIdx.x % kThreads;
  float of_weight[kOwn], of_bias[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) of_weight[i] = of_bias[i] = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kGroups;
  Pack<T, V> next_xs[Items], next_gs[Items];
  float next_mean = 0, next_rstd = 0;
  const auto fetch = [&](int64_t row) {  // past the last row nothing is loaded and nothing is used
    if (row >= rows) return;
    next_mean = means[row];
    next_rstd = rstds[row];
#pragma unroll
    for (int k = 0; k < Items; ++k) {
      const int j = (k * kThreads + lane) * V;
      if (j < columns) {
        next_xs[k] = load<V>(x + row * columns + j);
        next_gs[k] = load<V>(g + row * columns + j);
      }
    }
  };
  fetch(static_cast<int64_t>(blockIdx.x) * kGroups + group);
  int turn = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kGroups; first < rows; first += stride, turn ^= 1) {
    const int64_t row = first + group;
    const int limit = row < rows ? columns : 0;  // no early exit: the other groups wait at the barrier
    const int64_t at = row * columns;
    const float mean = next_mean, rstd = next_rstd;
    Pack<T, V> xs[Items], gs[Items];
#pragma unroll
    for (int k = 0; k < Items; ++k) {
      xs[k] = next_xs[k];
      gs[k] = next_gs[k];
    }
    fetch(row + stride);
    float2 sums{0, 0};  // of g w xhat, and of g w
#pragma unroll
    for (int k = 0; k < Items; ++k) {
      const int j = (k * kThreads + lane) * V;
      if (j >= limit) continue;
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        const Pack<float, 4> w = load<4>(weight + j + i);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const float grad = gs[k][i + m], normal = (xs[k][i + m] - mean) * rstd;
          of_weight[k * V + i + m] += grad * normal;
          of_bias[k * V + i + m] += grad;
          sums.x += grad * w[m] * normal;
          sums.y += grad * w[m];
        }
      }
    }
    sums = reduce_two<Warps>(sums, room, turn);
    const float along = sums.x / columns, plain = sums.y / columns;
#pragma unroll
    for (int k = 0; k < Items; ++k) {
      const int j = (k * kThreads + lane) * V;
      if (j >= limit) continue;
      Pack<T, V> result = zero_pack<V, T>();
      if constexpr (Add) result = load<V>(more + at + j);
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        const Pack<float, 4> w = load<4>(weight + j + i);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const float normal = (xs[k][i + m] - mean) * rstd;
          const float value = (gs[k][i + m] * w[m] - plain - normal * along) * rstd;
          result.set(i + m, Add ? value + result[i + m] : value);
        }
      }
      store<V>(dx + at + j, result);
    }
  }
  if constexpr (kGroups > 1) {  // group by group, so that the order of the sum is fixed
    __shared__ float from[2 * kOwn][kThreads];
    for (int other = 1; other < kGroups; ++other) {
      __syncthreads();
      if (group == other) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          from[i][lane] = of_weight[i];
          from[kOwn + i][lane] = of_bias[i];
        }
      }
      __syncthreads();
      if (group == 0) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          of_weight[i] += from[i][lane];
          of_bias[i] += from[kOwn + i][lane];
        }
      }
    }
    if (group) return;
  }
  float* own = partial + static_cast<int64_t>(blockIdx.x) * 2 * columns;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const int j = (k * kThreads + lane) * V;
    if (j >= columns) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      own[j + i] = of_weight[k * V + i];
      own[columns + j + i] = of_bias[k * V + i];
    }
  }
}

// Any width and alignment: the gradient of x, a row per block.
template <class T, bool Add>
__global__ void __launch_bounds__(256) any_backward(
    const T* g, const T* more, const T* x, const float* means, const float* rstds, const float* weight, T* dx,
    int64_t columns) {
  __shared__ float room[33];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * columns;
  const float mean = means[blockIdx.x], rstd = rstds[blockIdx.x];
  float along = 0, plain = 0;
  for (int64_t j = threadIdx.x; j < columns; j += 256) {
    const float scaled = widen(g[at + j]) * weight[j];
    along += scaled * (widen(x[at + j]) - mean) * rstd;
    plain += scaled;
  }
  along = reduce<256>(along, Sum{}, room) / columns;
  plain = reduce<256>(plain, Sum{}, room) / columns;
  for (int64_t j = threadIdx.x; j < columns; j += 256) {
    const float normal = (widen(x[at + j]) - mean) * rstd;
    float value = (widen(g[at + j]) * weight[j] - plain - normal * along) * rstd;
    if constexpr (Add) value += widen(more[at + j]);
    dx[at + j] = narrow<T>(value);
  }
}

// The gradients of weight and bias for the rows blockIdx.y, blockIdx.y + gridDim.y, ...; a thread per column.
template <class T>
__global__ void __launch_bounds__(128) any_sums(
    const T* g, const T* x, const float* means, const float* rstds, float* partial, int64_t rows, int64_t columns) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (j >= columns) return;
  float of_weight = 0, of_bias = 0;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float grad = widen(g[row * columns + j]);
    of_weight += grad * (widen(x[row * columns + j]) - means[row]) * rstds[row];
    of_bias += grad;
  }
  partial[(static_cast<int64_t>(blockIdx.y) * 2) * columns + j] = of_weight;
  partial[(static_cast<int64_t>(blockIdx.y) * 2 + 1) * columns + j] = of_bias;
}

template <int N> using Int = std::integral_constant<int, N>;

// f(threads per row, elements per thread)
template <class F> void forward_shape(int64_t columns, F f) {
  if (columns <= 256) f(Int<32>{}, Int<8>{});
  else if (columns <= 1024) f(Int<32>{}, Int<32>{});
  else if (columns <= 4096) f(Int<128>{}, Int<32>{});
  else f(Int<512>{}, Int<32>{});
}

// f(warps per row, elements per thread): the sums take two registers per element
template <class F> void backward_shape(int64_t columns, F f) {
  if (columns <= 256) f(Int<1>{}, Int<8>{});
  else if (columns <= 1024) f(Int<2>{}, Int<16>{});
  else if (columns <= 2048) f(Int<4>{}, Int<16>{});
  else if (columns <= 4096) f(Int<8>{}, Int<16>{});
  else f(Int<16>{}, Int<16>{});
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const int64_t size = x.dim() ? x.size(x.dim() - 1) : -1;
  STD_TORCH_CHECK(
      weight.dim() == 1 && bias.dim() == 1 && weight.size(0) == size && bias.size(0) == size,
      "layer_norm over ", size, " columns: weight and bias differ");
}

template <class F> void with_flag(bool flag, F f) {
  if (flag) f(std::true_type{});
  else f(std::false_type{});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& input, const std::optional<Tensor>& residual, const Tensor& weight, const Tensor& bias, double eps) {
  check(input, weight, bias);
  const Tensor x = dense(input), w = dense(weight, ScalarType::Float), b = dense(bias, ScalarType::Float);
  const std::optional<Tensor> more = dense(residual, x.scalar_type());
  const int64_t columns = x.size(x.dim() - 1), rows = columns ? x.numel() / columns : 0;
  std::vector<int64_t> leading = sizes_of(x);
  leading.pop_back();
  Tensor y = empty(x), total = more.has_value() ? empty(x) : x;
  Tensor mean = empty(x, leading, ScalarType::Float), rstd = empty(x, leading, ScalarType::Float);
  if (!rows) return {y, total, mean, rstd};
  const Guard guard(x.get_device_index());
  const cudaStream_t stream = stream_of(x);
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool fits = columns <= 16384 &&
        packs<T>(columns, columns,
                 {x.const_data_ptr(), more.has_value() ? more->const_data_ptr() : nullptr, w.const_data_ptr(),
                  b.const_data_ptr(), y.const_data_ptr(), total.const_data_ptr()});
    with_flag(more.has_value(), [&](auto add) {
      if (!fits) {
        any_forward<T, add.value><<<blocks_for(rows, 1), 256, 0, stream>>>(
            in<T>(x), in<T>(more), in<float>(w), in<float>(b), out<T>(y), out<T>(total), out<float>(mean),
            out<float>(rstd), columns, static_cast<float>(eps));
        return;
      }
      forward_shape(columns, [&](auto threads, auto elements) {
        constexpr int kThreads = decltype(threads)::value, kGroups = kThreads < 128 ? 128 / kThreads : 1;
        constexpr int kItems = decltype(elements)::value / kFull<T>;
        forward_rows<T, kFull<T>, kThreads, kItems, decltype(add)::value>
            <<<blocks_for(rows, kGroups), kThreads * kGroups, 0, stream>>>(
                in<T>(x), in<T>(more), in<float>(w), in<float>(b), out<T>(y), out<T>(total), out<float>(mean),
                out<float>(rstd), rows, static_cast<int>(columns), static_cast<float>(eps));
      });
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, total, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const std::optional<Tensor>& grad_total, const Tensor& input, const Tensor& mean,
    const Tensor& rstd, const Tensor& weight) {
  const Tensor x = dense(input), g = dense(grad, input.scalar_type()), w = dense(weight, ScalarType::Float);
  const Tensor m = dense(mean, ScalarType::Float), r = dense(rstd, ScalarType::Float);
  const std::optional<Tensor> more = dense(grad_total, x.scalar_type());
  const int64_t columns = x.size(x.dim() - 1), rows = columns ? x.numel() / columns : 0;
  const Guard guard(x.get_device_index());
  const cudaStream_t stream = stream_of(x);
  Tensor dx = empty(x), partial = empty(x, {0, 2, columns}, ScalarType::Float);
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (!rows) return;
    const bool fits = columns <= 8192 &&
        packs<T>(columns, columns,
                 {x.const_data_ptr(), g.const_data_ptr(), more.has_value() ? more->const_data_ptr() : nullptr,
                  w.const_data_ptr(), dx.const_data_ptr()});
    with_flag(more.has_value(), [&](auto add) {
      if (!fits) {
        any_backward<T, add.value><<<blocks_for(rows, 1), 256, 0, stream>>>(
            in<T>(g), in<T>(more), in<T>(x), in<float>(m), in<float>(r), in<float>(w), out<T>(dx), columns);
        const unsigned parts = static_cast<unsigned>(std::min<int64_t>(rows, 256));
        partial = empty(x, {parts, 2, columns}, ScalarType::Float);
        any_sums<T><<<dim3(blocks_for(columns, 128), parts), 128, 0, stream>>>(
            in<T>(g), in<T>(x), in<float>(m), in<float>(r), out<float>(partial), rows, columns);
        return;
      }
      backward_shape(columns, [&](auto warps, auto elements) {
        constexpr int kWarps = decltype(warps)::value, kGroups = kBackwardGroups<kWarps>;
        constexpr int kThreads = kBackwardThreads<kWarps>, kItems = decltype(elements)::value / kFull<T>;
        const auto kernel = backward_rows<T, kFull<T>, kWarps, kItems, decltype(add)::value>;
        const int64_t most = static_cast<int64_t>(multiprocessors(x)) * (512 / kThreads);  // as the launch bounds say
        const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(most, (rows + kGroups - 1) / kGroups));
        partial = empty(x, {blocks, 2, columns}, ScalarType::Float);
        kernel<<<blocks, kThreads, 0, stream>>>(
            in<T>(g), in<T>(more), in<T>(x), in<float>(m), in<float>(r), in<float>(w), out<T>(dx), out<float>(partial),
            rows, static_cast<int>(columns));
      });
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const std::vector<Tensor> sums = sums_of_parts(partial, weight);
  return {dx, sums[0], sums[1]};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(
    const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const auto [y, total, mean, rstd] = forward(x, std::nullopt, weight, bias, eps);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight) {
  return backward(grad, std::nullopt, x, mean, rstd, weight);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm(
    const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, double eps) {
  STD_TORCH_CHECK(sizes_of(x) == sizes_of(residual), "add_layer_norm adds two tensors of one shape");
  return forward(x, residual, weight, bias, eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CUDA, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("add_layer_norm_backward", TORCH_BOX(&backward));
}

}  // namespace cuda
}  // namespace slw
