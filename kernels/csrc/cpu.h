// Shared by the CPU kernels: element types, memory layouts, a parallel loop.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace deltaspace {

using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For inner loops: gcc vectorises them as separate functions with pointers that do not overlap.
#define ALONE [[gnu::noinline]] static

// The bits of a bfloat16: gcc vectorises loops over them, but not over torch's type.
using BFloat16 = uint16_t;

// Sums and products are made in float, or in double for double.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }
inline float widen(Half value) { return static_cast<float>(value); }
inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <typename T>
inline T narrow(typename Wide<T>::type value) {
  return static_cast<T>(value);
}
template <>
inline BFloat16 narrow<BFloat16>(float value) {  // to nearest even, in a form that compilers vectorise
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<BFloat16>(value != value ? 0x7fc0u : rounded);
}

// Sixteen values at a time on processors with bfloat16: gcc needs three times as many instructions for the above.
#ifdef __AVX512BF16__
constexpr int64_t kLanes = 16;
inline __m512 widen16(const BFloat16* from) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
inline void narrow16(__m512 values, BFloat16* to) {
  const __m256bh bits = _mm512_cvtneps_pbh(values);
  std::memcpy(to, &bits, sizeof bits);
}
#endif

// An image batch: n x h x w pixels of c values that lie side by side (`last`), or n x c planes of h x w.
struct Shape {
  int64_t n, c, h, w;
  bool last;
};

inline bool channels_last(const Tensor& x) {
  int64_t expected = 1;
  for (int64_t axis : {1, 3, 2, 0}) {
    if (x.size(axis) != 1 && x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

// Gradients may have any strides, also a single one of a batch.
inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() || (x.dim() == 4 && channels_last(x)) ? x : torch::stable::contiguous(x);
}

inline Tensor laid_out_like(const Tensor& x, const Tensor& model) {
  bool same = x.dim() == model.dim();
  for (int64_t axis = 0; same && axis < x.dim(); ++axis) same = x.stride(axis) == model.stride(axis);
  if (same) return x;
  Tensor copy = torch::stable::empty_like(model);
  torch::stable::copy_(copy, x);
  return copy;
}

inline Shape shape_of(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && channels_last(x);
  STD_TORCH_CHECK(x.dim() == 4 && (last || x.is_contiguous()), "expected a contiguous or channels_last tensor [B,C,H,W]");
  return {x.size(0), x.size(1), x.size(2), x.size(3), last};
}

template <typename F>
void parallel(int64_t count, int64_t grain, const F& body) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), body);
}

// Calls body(T{}) with the element type of x.
template <typename F>
void with_type(const Tensor& x, const F& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(BFloat16{});
    case ScalarType::Half: return body(Half{});
    default: STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

template <typename T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <typename T>
T* data_out(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// An empty batch of maps of h x w with the type and the layout of x.
inline Tensor resized(const Tensor& x, const Shape& s, int64_t h, int64_t w) {
  if (!s.last) return torch::stable::new_empty(x, {s.n, s.c, h, w});
  Tensor pixels = torch::stable::new_empty(x, {s.n, h, w, s.c});
  return torch::stable::transpose(torch::stable::transpose(pixels, 1, 3), 2, 3);  // torch 2.11 has no permute
}

template <int N, bool add, typename S, typename D, typename W>
ALONE void combine(D* __restrict out, const S* const* lines, const W* weights, int64_t size) {
  const S *a = lines[0], *b = N > 1 ? lines[1] : a, *c = N > 2 ? lines[2] : a, *d = N > 3 ? lines[3] : a;
  const W w0 = weights[0], w1 = N > 1 ? weights[1] : W(0), w2 = N > 2 ? weights[2] : W(0), w3 = N > 3 ? weights[3] : W(0);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    W sum = w0 * widen(a[i]);
    if constexpr (N > 1) sum += w1 * widen(b[i]);
    if constexpr (N > 2) sum += w2 * widen(c[i]);
    if constexpr (N > 3) sum += w3 * widen(d[i]);
    if constexpr (add) sum += out[i];
    out[i] = narrow<D>(sum);
  }
}

template <bool add, typename S, typename D, typename W>
void combine_few(D* out, const S* const* lines, const W* weights, int64_t count, int64_t size) {
  switch (count) {
    case 1: return combine<1, add, S, D, W>(out, lines, weights, size);
    case 2: return combine<2, add, S, D, W>(out, lines, weights, size);
    case 3: return combine<3, add, S, D, W>(out, lines, weights, size);
    default: return combine<4, add, S, D, W>(out, lines, weights, size);
  }
}

template <typename T, typename W>
ALONE void store_line(const W* __restrict from, T* __restrict to, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) to[i] = narrow<T>(from[i]);
}

// out[i] = weights[0] * lines[0][i] + weights[1] * lines[1][i] + ...; four lines at a time, `scratch` if there are more.
template <typename S, typename D, typename W>
void weighted(D* out, const std::vector<const S*>& lines, const std::vector<W>& weights, int64_t size, W* scratch) {
  const int64_t count = lines.size();
  if (count == 0) {
    std::fill(out, out + size, narrow<D>(W(0)));
  } else if (count <= 4) {
    combine_few<false, S, D, W>(out, lines.data(), weights.data(), count, size);
  } else {
    combine<4, false, S, W, W>(scratch, lines.data(), weights.data(), size);
    for (int64_t k = 4; k < count; k += 4) {
      combine_few<true, S, W, W>(scratch, &lines[k], &weights[k], count - k, size);
    }
    store_line<D, W>(scratch, out, size);
  }
}

}  // namespace deltaspace
