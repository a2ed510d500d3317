// residual + dropout(x + bias) on CUDA: megatron_slw/ops/dropout_residual.py.
//
// A thread owns a pack of columns and walks down the rows, as in bias_gelu.cu. The mask is that of the CPU.
#include "cuda/common.cuh"

#include <tuple>

namespace slw {
namespace cuda {
namespace {

constexpr int kThreads = 128;

// Philox4x32-7: four words of the counter.
__device__ __forceinline__ uint4 philox(uint64_t seed, uint64_t counter) {
  uint4 c{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 7; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c.x) * 0xD2511F53u, p1 = static_cast<uint64_t>(c.z) * 0xCD9E8D57u;
    c = uint4{static_cast<uint32_t>(p1 >> 32) ^ c.y ^ k0, static_cast<uint32_t>(p1),
              static_cast<uint32_t>(p0 >> 32) ^ c.w ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

struct Drop {
  const int64_t* seed;
  uint32_t threshold;
  float factor;
  bool on;
};

// factors[i] = d.factor where element e + i is kept, else 0. e is a multiple of 4 where V is.
template <int V> __device__ __forceinline__ void draw(const Drop& d, uint64_t seed, int64_t e, float* factors) {
  if (!d.on) {
#pragma unroll
    for (int i = 0; i < V; ++i) factors[i] = 1.0f;
    return;
  }
  if constexpr (V == 1) {
    const uint4 c = philox(seed, static_cast<uint64_t>(e) / 4);
    const int place = static_cast<int>(e % 4);
    const uint32_t word = place == 0 ? c.x : place == 1 ? c.y : place == 2 ? c.z : c.w;
    factors[0] = word >= d.threshold ? d.factor : 0.0f;
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const uint4 c = philox(seed, static_cast<uint64_t>(e + i) / 4);
      factors[i] = c.x >= d.threshold ? d.factor : 0.0f;
      factors[i + 1] = c.y >= d.threshold ? d.factor : 0.0f;
      factors[i + 2] = c.z >= d.threshold ? d.factor : 0.0f;
      factors[i + 3] = c.w >= d.threshold ? d.factor : 0.0f;
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) forward_columns(
    const T* __restrict__ x, const float* __restrict__ bias, const T* __restrict__ residual, T* __restrict__ y, Drop d,
    int64_t rows, int64_t columns) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (j >= columns) return;
  const uint64_t seed = static_cast<uint64_t>(*d.seed);
  float b[V];
#pragma unroll
  for (int i = 0; i < V; ++i) b[i] = bias ? bias[j + i] : 0.0f;
  const int64_t step = gridDim.y;
  for (int64_t row = blockIdx.y; row < rows; row += 2 * step) {
    Pack<T, V> xs[2], rs[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (row + r * step < rows) {
        xs[r] = load<V>(x + (row + r * step) * columns + j);
        rs[r] = load<V>(residual + (row + r * step) * columns + j);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + r * step >= rows) break;
      const int64_t at = (row + r * step) * columns + j;
      float factors[V];
      draw<V>(d, seed, at, factors);
#pragma unroll
      for (int i = 0; i < V; ++i) xs[r].set(i, (xs[r][i] + b[i]) * factors[i] + rs[r][i]);
      store<V>(y + at, xs[r]);
    }
  }
}

// partial: (gridDim.y, 1, columns), or null
template <class T, int V>
__global__ void __launch_bounds__(kThreads) backward_columns(
    const T* __restrict__ g, T* __restrict__ dx, float* __restrict__ partial, Drop d, int64_t rows, int64_t columns) {
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (j >= columns) return;
  const uint64_t seed = static_cast<uint64_t>(*d.seed);
  float sums[V];
#pragma unroll
  for (int i = 0; i < V; ++i) sums[i] = 0;
  const int64_t step = gridDim.y;
  for (int64_t row = blockIdx.y; row < rows; row += 2 * step) {
    Pack<T, V> gs[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (row + r * step < rows) gs[r] = load<V>(g + (row + r * step) * columns + j);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + r * step >= rows) break;
      const int64_t at = (row + r * step) * columns + j;
      float factors[V];
      draw<V>(d, seed, at, factors);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float value = gs[r][i] * factors[i];
        sums[i] += value;
        gs[r].set(i, value);
      }
      store<V>(dx + at, gs[r]);
    }
  }
  if (!partial) return;
#pragma unroll
  for (int i = 0; i < V; ++i) partial[static_cast<int64_t>(blockIdx.y) * columns + j + i] = sums[i];
}

Drop drop_of(const Tensor& seed, double p) {
  STD_TORCH_CHECK(
      seed.dim() == 0 && seed.scalar_type() == ScalarType::Long && seed.is_cuda(),
      "bias_dropout_add: the seed is one int64 on the device of the others");
  STD_TORCH_CHECK(p >= 0.0 && p < 1.0, "bias_dropout_add: p is ", p, ", not in [0, 1)");
  return Drop{in<int64_t>(seed), static_cast<uint32_t>(p * 4294967296.0), static_cast<float>(1.0 / (1.0 - p)), p > 0.0};
}

void check(const Tensor& x, const std::optional<Tensor>& bias) {
  const int64_t columns = x.dim() ? x.size(x.dim() - 1) : 1;
  STD_TORCH_CHECK(
      !bias.has_value() || (x.dim() > 0 && bias->dim() == 1 && bias->size(0) == columns),
      "bias_dropout_add: the bias does not fit ", columns, " columns");
}

unsigned slices(const Tensor& x, int64_t rows, unsigned across, int64_t per_thread) {
  const int64_t wanted = std::max<int64_t>(1, 16 * multiprocessors(x) / across);
  return static_cast<unsigned>(std::max<int64_t>(1, std::min({wanted, (rows + per_thread - 1) / per_thread, int64_t(65535)})));
}

Tensor bias_dropout_add(
    const Tensor& input, const std::optional<Tensor>& bias, const Tensor& residual, const Tensor& seed, double p) {
  STD_TORCH_CHECK(sizes_of(input) == sizes_of(residual), "bias_dropout_add adds two tensors of one shape");
  check(input, bias);
  const Drop d = drop_of(seed, p);
  const Tensor x = dense(input), r = dense(residual, input.scalar_type());
  const std::optional<Tensor> b = dense(bias, ScalarType::Float);
  Tensor y = empty(x);
  if (!x.numel()) return y;
  const int64_t columns = x.dim() ? x.size(x.dim() - 1) : 1, rows = x.numel() / columns;
  const Guard guard(x.get_device_index());
  with_type(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const auto launch = [&](auto v) {
      constexpr int V = decltype(v)::value;
      const unsigned across = blocks_for(columns, kThreads * V);
      forward_columns<T, V><<<dim3(across, slices(x, rows, across, 2)), kThreads, 0, stream_of(x)>>>(
          in<T>(x), in<float>(b), in<T>(r), out<T>(y), d, rows, columns);
    };
    if (packs<T>(columns, columns, {x.const_data_ptr(), r.const_data_ptr(), y.const_data_ptr()}))
      launch(std::integral_constant<int, kFull<T>>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

std::tuple<Tensor, Tensor> bias_dropout_add_backward(
    const Tensor& grad, const std::optional<Tensor>& bias, const Tensor& seed, double p) {
  check(grad, bias);
  const Drop d = drop_of(seed, p);
  const Tensor g = dense(grad);
  const int64_t columns = g.dim() ? g.size(g.dim() - 1) : 1, rows = columns ? g.numel() / columns : 0;
  const Guard guard(g.get_device_index());
  Tensor dx = empty(g), partial = empty(g, {0, 1, columns}, ScalarType::Float);
  if (rows) {
    with_type(g, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      const auto launch = [&](auto v) {
        constexpr int V = decltype(v)::value;
        const unsigned across = blocks_for(columns, kThreads * V), parts = slices(g, rows, across, 32);
        if (bias.has_value()) partial = empty(g, {parts, 1, columns}, ScalarType::Float);
        backward_columns<T, V><<<dim3(across, parts), kThreads, 0, stream_of(g)>>>(
            in<T>(g), out<T>(dx), bias.has_value() ? out<float>(partial) : nullptr, d, rows, columns);
      };
      if (packs<T>(columns, columns, {g.const_data_ptr(), dx.const_data_ptr()}))
        launch(std::integral_constant<int, kFull<T>>{});
      else
        launch(std::integral_constant<int, 1>{});
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {dx, bias.has_value() ? sums_of_parts(partial, *bias)[0] : empty(g, {0}, g.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_slw, CUDA, m) {
  m.impl("bias_dropout_add", TORCH_BOX(&bias_dropout_add));
  m.impl("bias_dropout_add_backward", TORCH_BOX(&bias_dropout_add_backward));
}

}  // namespace cuda
}  // namespace slw
