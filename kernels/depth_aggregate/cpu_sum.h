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
  float* sums;  // ways kSumRun apart
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
      float* at = of.sums + c * kSumRun + d;
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

// Groups between a place and the one that is fetched meanwhile: far enough for memory to answer,
// near enough for the first-level cache to keep it.
constexpr int kGroupsAhead = kMostSources > 2 ? 1 : 2;

// Ways first_way.. of a run of tokens.
template <class T, int kWays>
class TokenSums {
 public:
  TokenSums(const DepthAggregate& problem, void* const* out, std::int64_t first_way,
            bool is_past_caches)
      : problem_(problem), out_(out), first_way_(first_way), grid_(problem, kSumRun, kMostSources) {
    of_.is_past_caches = is_past_caches;
  }

  void run(TokenRange tokens) {
    Place at = {tokens.begin, 0, 0};
    Place ahead = at;
    for (int i = 0; i < kGroupsAhead; ++i) {
      ahead = grid_.after(ahead);
    }
    for (; at.token < tokens.end; at = grid_.after(at), ahead = grid_.after(ahead)) {
      of_.columns = grid_.columns(at);
      of_.is_first = at.group == 0;
      of_.is_last = at.group + 1 == grid_.num_groups;
      const std::int64_t count = least(grid_.block, tokens.end - at.token);
      for (std::int64_t i = 0; i < count; ++i) {
        add(at, ahead, i);
      }
    }
  }

 private:
  // Token i of the block.
  void add(Place at, Place ahead, std::int64_t i) {
    const std::int64_t token = at.token + i;
    const std::int64_t element = token * grid_.width + at.column;
    const std::int64_t fetched =
        least(ahead.token + i, problem_.num_tokens - 1) * grid_.width + ahead.column;
    const std::int64_t source = grid_.first_source(at.group);
    const std::int64_t count = grid_.first_source(at.group + 1) - source;
    const std::int64_t next = grid_.first_source(ahead.group);
    const std::int64_t last = grid_.first_source(ahead.group + 1) - 1;
    for (std::int64_t g = 0; g < count; ++g) {
      of_.x[g] = source_at<T>(problem_, source + g, element);
      of_.next[g] = source_at<T>(problem_, least(next + g, last), fetched);
      for (int c = 0; c < kWays; ++c) {
        of_.weight[c][g] = weight_of(problem_, token, first_way_ + c, source + g);
      }
    }
    for (int c = 0; c < kWays; ++c) {
      of_.out[c] = static_cast<T*>(out_[first_way_ + c]) + element;
    }
    of_.sums = sums_ + i * padded(grid_.width);
    add_sources<T, kWays, kMostSources>(of_, count);
  }

  const DepthAggregate& problem_;
  void* const* out_;
  std::int64_t first_way_;
  Grid grid_;
  SumGroup<T> of_{};
  alignas(64) float sums_[kWays * kSumRun];
};

template <class T>
void sum_all_ways(const DepthAggregate& problem, void* const* out, TokenRange tokens,
                  bool is_past_caches) {
  for (std::int64_t way = 0; way < problem.num_ways; way += kMostWays) {
    switch (problem.num_ways - way) {
      case 1:
        TokenSums<T, 1>(problem, out, way, is_past_caches).run(tokens);
        break;
      case 2:
        TokenSums<T, 2>(problem, out, way, is_past_caches).run(tokens);
        break;
      case 3:
        TokenSums<T, 3>(problem, out, way, is_past_caches).run(tokens);
        break;
      default:
        TokenSums<T, 4>(problem, out, way, is_past_caches).run(tokens);
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
