// GELU(x + bias) on CUDA: megatron_slw/ops/bias_gelu.py.
//
// A thread owns a pack of columns and walks down the rows: the bias is read once, and its gradient is a sum in registers.
#include "cuda/common.cuh"

#include <tuple>

namespace slw {
namespace cuda {
namespace {

template <bool Tanh, bool Derivative> __device__ __forceinline__ float gelu(float u) {
  if constexpr (Tanh) {
    constexpr float kScale = 0.7978845608028654f, kCubic = 0.044715f;
    const float z = kScale * u * fmaf(kCubic, u * u, 1.0f);
    const float s = __fdividef(1.0f, 1.0f + exp2f(-2.0f * 1.4426950408889634f * z));  // (1 + tanh(z)) / 2
    if constexpr (!Derivative) return u * s;
    return s + u * s * (1.0f - s) * 2.0f * kScale * fmaf(3.0f * kCubic, u * u, 1.0f);
  } else {
    const float cdf = normcdff(u);
    if constexpr (!Derivative) return u * cdf;
    return cdf + u * 0.3989422804014327f * exp2f(-0.5f * 1.4426950408889634f * u * u);
  }
}

constexpr int kThreads = 128, kUnroll = 4;

template <class T, int V, bool Tanh>
__global__ void __launch_bounds__(kThreads)
    forward_columns(const T* __restrict__ x, const float* __restrict__ bias, T* __restrict__ y, int64_t rows, int64_t columns) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (j >= columns) return;
  float b[V];
#pragma unroll
  for (int i = 0; i < V; ++i) b[i] = bias[j + i];
  const int64_t step = gridDim.y;
  for (int64_t row = blockIdx.y; row < rows; row += kUnroll * step) {
    Pack<T, V> packs[kUnroll];
#pragma unroll
    for (int r = 0; r < kUnroll; ++r)
      if (row + r * step < rows) packs[r] = load<V>(x + (row + r * step) * columns + j);
#pragma unroll
    for (int r = 0; r < kUnroll; ++r) {
      if (row + r * step >= rows) break;
#pragma unroll
      for (int i = 0; i < V; ++i) packs[r].set(i, gelu<Tanh, false>(packs[r][i] + b[i]));
      store<V>(y + (row + r * step) * columns + j, packs[r]);
    }
  }
}

// partial: (gridDim.y, 1, columns)
template <class T, int V, bool Tanh>
__global__ void __launch_bounds__(kThreads) backward_columns(
    const T* __restrict__ g, const T* __restrict__ x, const float* __restrict__ bias, T* __restrict__ dx,
    float* __restrict__ partial, int64_t rows, int64_t columns) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (j >= columns) return;
  float b[V], sums[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    b[i] = bias[j + i];
    sums[i] = 0;
  }
  const int64_t step = gridDim.y;
  for (int64_t row = blockIdx.y; row < rows; row += 2 * step) {
    Pack<T, V> xs[2], gs[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (row + r * step < rows) {
        xs[r] = load<V>(x + (row + r * step) * columns + j);
        gs[r] = load<V>(g + (row + r * step) * columns + j);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + r * step >= rows) break;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float value = gs[r][i] * gelu<Tanh, true>(xs[r][i] + b[i]);
        sums[i] += value;
        gs[r].set(i, value);
      }
      store<V>(dx + (row + r * step) * columns + j, gs[r]);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) partial[static_cast<int64_t>(blockIdx.y) * columns + j + i] = sums[i];
}

// f(pack width, whether tanh) as constants
template <class T, class F> void with_form(bool fits, bool tanh, F f) {
  using std::integral_constant;
  if (fits && tanh) f(integral_constant<int, kFull<T>>{}, std::true_type{});
  else if (fits) f(integral_constant<int, kFull<T>>{}, std::false_type{});
  else if (tanh) f(integral_constant<int, 1>{}, std::true_type{});
  else f(integral_constant<int, 1>{}, std::false_type{});
}

void check(const Tensor& x, const Tensor& bias) {
  const int64_t size = x.dim() ? x.size(x.dim() - 1) : -1;
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == size, "bias_gelu: the bias does not fit ", size, " columns");
}

// Row slices: enough blocks to fill the device several times over, and no more sums than rows / per_thread.
unsigned slices(const Tensor& x, int64_t rows, unsigned across, int64_t per_thread) {
  const int64_t wanted = std::max<int64_t>(1, 16 * multiprocessors(x) / across);
  return static_cast<unsigned>(std::max<int64_t>(1, std::min({wanted, (rows + per_thread - 1) / per_thread, int64_t(65535)})));
}

Tensor bias_gelu(const Tensor& input, const Tensor& bias, bool tanh) {
  check(input, bias);
  const Tensor x = dense(input), b = dense(bias, ScalarType::Float);
  Tensor y = empty(x);
  if (!x.numel()) return y;
  const int64_t columns = x.size(x.dim() - 1), rows = x.numel() / columns;
  const Guard guard(x.get_device_index());
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const bool fits = packs<T>(columns, columns, {x.const_data_ptr(), y.const_data_ptr()});
    with_form<T>(fits, tanh, [&](auto v, auto form) {
      constexpr int V = decltype(v)::value;
      const unsigned across = blocks_for(columns, kThreads * V);
      forward_columns<T, V, decltype(form)::value>
          <<<dim3(across, slices(x, rows, across, kUnroll)), kThreads, 0, stream_of(x)>>>(
              in<T>(x), in<float>(b), out<T>(y), rows, columns);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

std::tuple<Tensor, Tensor> bias_gelu_backward(
    const Tensor& grad, const Tensor& input, const Tensor& bias, bool tanh) {
  check(input, bias);
  const Tensor x = dense(input), g = dense(grad, input.scalar_type()), b = dense(bias, ScalarType::Float);
  const int64_t columns = x.size(x.dim() - 1), rows = columns ? x.numel() / columns : 0;
  const Guard guard(x.get_device_index());
  Tensor dx = empty(x), partial = empty(x, {0, 1, columns}, ScalarType::Float);
  if (rows) {
    with_type(x, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      const bool fits = packs<T>(columns, columns, {x.const_data_ptr(), g.const_data_ptr(), dx.const_data_ptr()});
      with_form<T>(fits, tanh, [&](auto v, auto form) {
        constexpr int V = decltype(v)::value;
        const unsigned across = blocks_for(columns, kThreads * V), parts = slices(x, rows, across, 32);
        partial = empty(x, {parts, 1, columns}, ScalarType::Float);
        backward_columns<T, V, decltype(form)::value><<<dim3(across, parts), kThreads, 0, stream_of(x)>>>(
            in<T>(g), in<T>(x), in<float>(b), out<T>(dx), out<float>(partial), rows, columns);
      });
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {dx, sums_of_parts(partial, bias)[0]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CUDA, m) {
  m.impl("bias_gelu", TORCH_BOX(&bias_gelu));
  m.impl("bias_gelu_backward", TORCH_BOX(&bias_gelu_backward));
}

}  // namespace cuda
}  // namespace slw
