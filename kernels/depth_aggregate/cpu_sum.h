#pragma once
// The streams of a run of tokens.
#include "kernels/depth_aggregate/cpu_grid.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Past the caches; p is a multiple of the vector's bytes.
inline void stream(float* p, VecF v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  _mm_stream_ps(p, v);
#endif
}
inline void stream(std::uint16_t* p, VecF v) {
  std::uint16_t half[kFloatLanes];
  store_bfloat16(half, v);
#if defined(__AVX512F__)
  __m256i bits;
  __builtin_memcpy(&bits, half, sizeof(bits));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
#elif defined(__AVX2__)
  __m128i bits;
  __builtin_memcpy(&bits, half, sizeof(bits));
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), bits);
#else
  long long bits = 0;
  __builtin_memcpy(&bits, half, sizeof(bits));
  _mm_stream_si64(reinterpret_cast<long long*>(p), bits);
#endif
}

// Sources of a group, in a chunk of a token's columns, and what is fetched meanwhile.
template <class T>
struct SumGroup {
  const T* x[kMostSources];
  const T* next[kMostSources];
  float weight[kMostWays][kMostSources];
  float* sums;  // [ways][kChunkColumns]
  T* out[kMostWays];
  std::int64_t columns;
  bool is_first;
  bool is_last;
  bool is_past_caches;
};

template <class T, int kWays, int kSources>
void add_group(const SumGroup<T>& of) {
  VecF weight[kWays][kSources];
  repeat<kWays>(
      [&](int c) { repeat<kSources>([&](int g) { weight[c][g] = set1(of.weight[c][g]); }); });
  const bool is_first = of.is_first;
  const bool is_last = of.is_last;
  const bool is_past_caches = of.is_past_caches;
  for_each_vector(of.columns, [&](std::int64_t d, std::int64_t count) {
    VecF x[kSources];
    repeat<kSources>([&](int g) {
      __builtin_prefetch(of.next[g] + d, 0, 3);
      x[g] = load_row(of.x[g] + d, count);
    });
    repeat<kWays>([&](int c) {
      float* at = of.sums + c * kChunkColumns + d;
      VecF sum = is_first ? zero() : load(at);
      repeat<kSources>([&](int g) { sum = fma(weight[c][g], x[g], sum); });
      if (!is_last) {
        store(at, sum);
      } else if (is_past_caches) {
        stream(of.out[c] + d, sum);
      } else {
        store_row(of.out[c] + d, count, sum);
      }
    });
  });
}

// kSources or fewer of them.
template <class T, int kWays, int kSources>
void add_sources(const SumGroup<T>& of, std::int64_t sources) {
  if constexpr (kSources > 1) {
    if (sources < kSources) {
      add_sources<T, kWays, kSources - 1>(of, sources);
      return;
    }
  }
  add_group<T, kWays, kSources>(of);
}

// Ways first_way.. of the tokens.
template <class T, int kWays>
void sum_tokens(const DepthAggregate& problem, void* const* out, std::int64_t first_way,
                TokenRange tokens, bool is_past_caches) {
  const Grid grid(problem, kMostSources);
  alignas(64) float sums[kWays * kChunkColumns];
  SumGroup<T> of{};
  of.sums = sums;
  of.is_past_caches = is_past_caches;
  Place ahead = grid.ahead({tokens.begin, 0, 0});
  for (Place at = {tokens.begin, 0, 0}; at.token < tokens.end;
       at = grid.after(at), ahead = grid.after(ahead)) {
    const Place fetched = ahead.token < problem.num_tokens ? ahead : at;
    const std::int64_t source = grid.first_source(at.group);
    const std::int64_t fetched_source = grid.first_source(fetched.group);
    const std::int64_t count = grid.first_source(at.group + 1) - source;
    const std::int64_t last = grid.first_source(fetched.group + 1) - 1;
    for (std::int64_t g = 0; g < count; ++g) {
      of.x[g] = source_at<T>(problem, source + g, grid.element(at));
      of.next[g] = source_at<T>(problem, least(fetched_source + g, last), grid.element(fetched));
      for (int c = 0; c < kWays; ++c) {
        of.weight[c][g] = weight_of(problem, at.token, first_way + c, source + g);
      }
    }
    for (int c = 0; c < kWays; ++c) {
      of.out[c] = static_cast<T*>(out[first_way + c]) + grid.element(at);
    }
    of.columns = grid.columns(at);
    of.is_first = at.group == 0;
    of.is_last = at.group + 1 == grid.num_groups;
    add_sources<T, kWays, kMostSources>(of, count);
  }
}

template <class T>
void sum_all_ways(const DepthAggregate& problem, void* const* out, TokenRange tokens,
                  bool is_past_caches) {
  for (std::int64_t way = 0; way < problem.num_ways; way += kMostWays) {
    switch (problem.num_ways - way) {
      case 1:
        sum_tokens<T, 1>(problem, out, way, tokens, is_past_caches);
        break;
      case 2:
        sum_tokens<T, 2>(problem, out, way, tokens, is_past_caches);
        break;
      case 3:
        sum_tokens<T, 3>(problem, out, way, tokens, is_past_caches);
        break;
      default:
        sum_tokens<T, 4>(problem, out, way, tokens, is_past_caches);
    }
  }
}

inline void forward(const DepthAggregate& problem, void* const* out, TokenRange tokens,
                    bool is_past_caches) {
  const std::int64_t size = problem.dtype == DType::kFloat32 ? 4 : 2;
  bool is_aligned = problem.width * size % 64 == 0;
  for (std::int64_t c = 0; c < problem.num_ways; ++c) {
    is_aligned = is_aligned && reinterpret_cast<std::uintptr_t>(out[c]) % 64 == 0;
  }
  if (problem.dtype == DType::kFloat32) {
    sum_all_ways<float>(problem, out, tokens, is_past_caches && is_aligned);
  } else {
    sum_all_ways<std::uint16_t>(problem, out, tokens, is_past_caches && is_aligned);
  }
  if (is_past_caches && is_aligned) {
    _mm_sfence();  // before the task counts as done
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
