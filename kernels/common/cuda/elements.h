#pragma once
// Elements of tensors as a GPU's kernels read and write them: numbers of four dtypes, and packs of
// 16 bytes that one instruction moves. Host-device: the host's forms give the bits of the device's
// (but those of a NaN).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "kernels/common/cuda/team.h"
#include "kernels/common/number.h"
#include "kernels/common/tensor_view.h"

namespace paperlab::kernels {

// Elements are of type float, double, BFloat16 or Float16. NumberOf<T>: what they are computed in,
// double for double and float for the others.
template <class T>
struct NumberTrait {
  using Type = float;
};
template <>
struct NumberTrait<double> {
  using Type = double;
};
template <class T>
using NumberOf = typename NumberTrait<T>::Type;

template <class T>
struct ElementType {
  using Type = T;
};

// Calls body(ElementType<T>{}) with the type of `dtype`. Host.
template <class F>
void with_element(DType dtype, F body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(ElementType<float>{});
    case DType::kBFloat16:
      return body(ElementType<BFloat16>{});
    case DType::kFloat16:
      return body(ElementType<Float16>{});
    case DType::kFloat64:
      return body(ElementType<double>{});
  }
}

// The same bits as another type of that size.
template <class To, class From>
PAPERLAB_HD To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

PAPERLAB_HD inline float to_number(float x) { return x; }
PAPERLAB_HD inline double to_number(double x) { return x; }
PAPERLAB_HD inline float to_number(BFloat16 x) {
  return bits_as<float>(std::uint32_t{x.bits} << 16U);
}
PAPERLAB_HD inline float to_number(Float16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return from_float16(x);
#endif
}

// Two elements of 16 bits as one word, the first one low: to the nearest, ties to even.
template <class T>
PAPERLAB_HD std::uint32_t to_word(float low, float high);
template <>
PAPERLAB_HD inline std::uint32_t to_word<BFloat16>(float low, float high) {
#ifdef __CUDA_ARCH__
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return std::uint32_t{to_bfloat16(high).bits} << 16U | to_bfloat16(low).bits;
#endif
}
template <>
PAPERLAB_HD inline std::uint32_t to_word<Float16>(float low, float high) {
#ifdef __CUDA_ARCH__
  std::uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return std::uint32_t{to_float16(high).bits} << 16U | to_float16(low).bits;
#endif
}

// A number as an element of T: to the nearest, ties to even.
template <class T>
PAPERLAB_HD T to_element(NumberOf<T> x) {
  if constexpr (sizeof(T) == 2) {
    return T{static_cast<std::uint16_t>(to_word<T>(x, 0.0F))};
  } else {
    return x;
  }
}

// a b + c, rounded once.
PAPERLAB_HD inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
PAPERLAB_HD inline double fused(double a, double b, double c) { return std::fma(a, b, c); }

// ---------------------------------------------------------------------------------------------

// 16 bytes of neighbouring elements.
struct alignas(16) Pack {
  std::uint32_t word[4];
};

template <class T>
constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));  // elements

// Packs that hold `width` elements, the last one perhaps in part.
template <class T>
PAPERLAB_HD constexpr std::int64_t num_packs(std::int64_t width) {
  return (width + kPackSize<T> - 1) / kPackSize<T>;
}

PAPERLAB_HD constexpr Pack zero_pack() { return {{0, 0, 0, 0}}; }

// `from` and `to` are multiples of 16 bytes.
PAPERLAB_HD inline Pack load_pack(const void* from) {
#ifdef __CUDA_ARCH__
  const uint4 words = *static_cast<const uint4*>(from);
  return {{words.x, words.y, words.z, words.w}};
#else
  Pack pack;
  std::memcpy(&pack, from, sizeof(pack));
  return pack;
#endif
}
PAPERLAB_HD inline void store_pack(void* to, const Pack& pack) {
#ifdef __CUDA_ARCH__
  *static_cast<uint4*>(to) = make_uint4(pack.word[0], pack.word[1], pack.word[2], pack.word[3]);
#else
  std::memcpy(to, &pack, sizeof(pack));
#endif
}

// Two elements of 16 bits at an even place.
PAPERLAB_HD inline void store_word(std::uint16_t* to, std::uint32_t word) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<std::uint32_t*>(to) = word;
#else
  std::memcpy(to, &word, sizeof(word));
#endif
}

// A pack whose elements are moved by one: towards the end, behind `first`; towards the beginning.
template <class T>
PAPERLAB_HD Pack with_first(T first, const Pack& pack) {
  const auto [a, b, c, d] = pack.word;
  if constexpr (sizeof(T) == 2) {
    return {{a << 16U | first.bits, b << 16U | a >> 16U, c << 16U | b >> 16U, d << 16U | c >> 16U}};
  } else if constexpr (sizeof(T) == 4) {
    return {{bits_as<std::uint32_t>(first), a, b, c}};
  } else {
    const auto bits = bits_as<std::uint64_t>(first);
    return {{static_cast<std::uint32_t>(bits), static_cast<std::uint32_t>(bits >> 32U), a, b}};
  }
}
template <class T>
PAPERLAB_HD Pack without_first(const Pack& pack) {
  const auto [a, b, c, d] = pack.word;
  if constexpr (sizeof(T) == 2) {
    return {{b << 16U | a >> 16U, c << 16U | b >> 16U, d << 16U | c >> 16U, d >> 16U}};
  } else if constexpr (sizeof(T) == 4) {
    return {{b, c, d, 0}};
  } else {
    return {{c, d, 0, 0}};
  }
}
template <class T>
PAPERLAB_HD T first_of(const Pack& pack) {
  if constexpr (sizeof(T) == 2) {
    return T{static_cast<std::uint16_t>(pack.word[0])};
  } else if constexpr (sizeof(T) == 4) {
    return bits_as<T>(pack.word[0]);
  } else {
    return bits_as<T>(std::uint64_t{pack.word[1]} << 32U | pack.word[0]);
  }
}

// Loops of the slow path stay loops: unrolled, they would take the fast path's registers.
#ifdef __CUDA_ARCH__
#define PAPERLAB_NO_UNROLL _Pragma("unroll 1")
#else
#define PAPERLAB_NO_UNROLL
#endif

// The first `count` elements (all from kPackSize on, none below 1) one by one, whatever the
// alignment; the others are zeros, and are not read or written.
template <class T>
PAPERLAB_HD Pack load_some(const T* from, std::int64_t count) {
  Pack pack = zero_pack();
  const int end = count < kPackSize<T> ? static_cast<int>(count) : kPackSize<T>;
  PAPERLAB_NO_UNROLL
  for (int i = end - 1; i >= 0; --i) {
    pack = with_first(from[i], pack);
  }
  return pack;
}
template <class T>
PAPERLAB_HD void store_some(T* to, std::int64_t count, Pack pack) {
  const int end = count < kPackSize<T> ? static_cast<int>(count) : kPackSize<T>;
  PAPERLAB_NO_UNROLL
  for (int i = 0; i < end; ++i) {
    to[i] = first_of<T>(pack);
    pack = without_first<T>(pack);
  }
}

// The elements from `at` on of a row of `width`; zeros behind its end. is_whole (has_whole_packs):
// the row consists of aligned packs.
template <class T>
PAPERLAB_HD Pack load_of_row(const T* row, std::int64_t at, std::int64_t width, bool is_whole) {
  if (is_whole) {
    return at < width ? load_pack(row + at) : zero_pack();
  }
  return load_some(row + at, width - at);
}
template <class T>
PAPERLAB_HD void store_of_row(T* row, std::int64_t at, std::int64_t width, bool is_whole,
                              const Pack& pack) {
  if (!is_whole) {
    store_some(row + at, width - at, pack);
  } else if (at < width) {
    store_pack(row + at, pack);
  }
}

// A pack's elements as numbers, and back.
template <class T>
PAPERLAB_HD void unpack(const Pack& pack, NumberOf<T> (&to)[kPackSize<T>]) {
  if constexpr (sizeof(T) > 2) {
    memcpy(&to, &pack, sizeof(pack));
  } else {
    PAPERLAB_UNROLL
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t word = pack.word[i];
      to[2 * i] = to_number(T{static_cast<std::uint16_t>(word)});
      to[2 * i + 1] = to_number(T{static_cast<std::uint16_t>(word >> 16U)});
    }
  }
}
template <class T>
PAPERLAB_HD Pack to_pack(const NumberOf<T> (&from)[kPackSize<T>]) {
  if constexpr (sizeof(T) > 2) {
    return bits_as<Pack>(from);
  } else {
    Pack pack;
    PAPERLAB_UNROLL
    for (int i = 0; i < 4; ++i) {
      pack.word[i] = to_word<T>(from[2 * i], from[2 * i + 1]);
    }
    return pack;
  }
}

// Whether rows of `width` elements are packs that begin at multiples of 16 bytes: their first
// addresses (null: absent) and their strides in elements. Host.
template <class T>
bool has_whole_packs(std::int64_t width, std::initializer_list<const void*> first,
                     std::initializer_list<std::int64_t> strides) {
  bool is_whole = width % kPackSize<T> == 0;
  for (const void* address : first) {
    is_whole = is_whole && reinterpret_cast<std::uintptr_t>(address) % sizeof(Pack) == 0;
  }
  for (const std::int64_t stride : strides) {
    is_whole = is_whole && stride % kPackSize<T> == 0;
  }
  return is_whole;
}

}  // namespace paperlab::kernels
