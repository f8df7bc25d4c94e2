#pragma once
// A single query of all heads of a unit against a run of keys: bound by memory, so each key and
// value is read once for all heads. Here the head dimension lies in the lanes. Include only from
// cpu.cpp.

#include "kernels/attention/cpu_forward.h"
#include "kernels/common/vec_lanes.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Rows of K or V, of float32 or bfloat16, whose length is a multiple of the lanes.
template <class T>
struct WideRows {
  const T* row;
  std::int64_t stride;
};

template <class T>
inline WideRows<T> from_key(const WideRows<T>& rows, std::int64_t skipped) {
  return {rows.row + skipped * rows.stride, rows.stride};
}

// The next vector of words of a row.
template <class Word>
inline VecF load_wide(const float* p) {
  return load(p);
}
template <class Word>
inline VecF load_wide(const std::uint16_t* p) {
  if constexpr (Word::kNumbers == 1) {
    return load_bfloat16(p);
  } else {
    VecF words;
    __builtin_memcpy(&words, p, sizeof(words));
    return words;
  }
}

// How many elements lie between what is read and what is asked for: rows of 8 KiB, because the work
// on a key hides the misses of the next ones from the CPU. Addresses past the end are harmless.
template <class T>
inline std::int64_t elements_ahead(const WideRows<T>& rows, std::int64_t width) {
  const std::int64_t row_bytes = width * static_cast<std::int64_t>(sizeof(T));
  return ceil_div(8192, row_bytes) * rows.stride;
}

// logits[h][n] = factor * q_h . k_n for Heads heads and the next kFloatLanes / Heads keys; of those
// beyond num_keys it repeats the last one's. `query` holds rows of words.
template <class Word, int Heads, class T>
inline void decode_dots(const float* query, std::int64_t width, const WideRows<T>& key,
                        std::int64_t num_keys, float factor, float* logits) {
  constexpr std::int64_t kKeys = kFloatLanes / Heads;
  constexpr std::int64_t kStep = kFloatLanes * Word::kNumbers;
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
  const T* rows[kKeys];
  for (std::int64_t n = 0; n < kKeys; ++n) {
    rows[n] = key.row + (n < num_keys ? n : num_keys - 1) * key.stride;
  }
  // Lines are asked for in the order of their addresses, which is not that of the reads.
  const T* next = key.row + elements_ahead(key, width);
  VecF terms[kFloatLanes];
#pragma GCC unroll 16
  for (auto& term : terms) {
    term = zero();
  }
  for (std::int64_t d = 0; d < width; d += kStep) {
    VecF q[Heads];
#pragma GCC unroll 4
    for (std::int64_t h = 0; h < Heads; ++h) {
      q[h] = load(query + (h * width + d) / Word::kNumbers);
    }
#pragma GCC unroll 16
    for (std::int64_t n = 0; n < kKeys; ++n) {
      const VecF k = load_wide<Word>(rows[n] + d);
      __builtin_prefetch(next, 0, 3);
      next += smaller(kStep, kLine);
#pragma GCC unroll 4
      for (std::int64_t h = 0; h < Heads; ++h) {
        terms[h * kKeys + n] = Word::multiply_add(q[h], k, terms[h * kKeys + n]);
      }
    }
  }
  float dots[kFloatLanes];
  store(dots, sum_lanes(terms) * set1(factor));
  for (std::int64_t h = 0; h < Heads; ++h) {
    copy_row(dots + h * kKeys, kKeys, logits + h * kTileKeys);
  }
}

// Columns d.. of `Vectors` vectors of: out[h] = keep[h] out[h] + sum over n of weights[h][n] v_n.
// Asks for `prefetched` columns of the rows ahead.
template <int Heads, int Vectors, class T>
inline void decode_columns(const float* weights, const float* keep, const WideRows<T>& value,
                           std::int64_t num_keys, std::int64_t d, std::int64_t ahead,
                           std::int64_t prefetched, std::int64_t out_stride, float* out) {
  Sums<Heads, Vectors> sums{};
  for (std::int64_t n = 0; n < num_keys; ++n) {
    VecF v[Vectors];
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < Vectors; ++i) {
      const T* at = value.row + n * value.stride + d + i * kFloatLanes;
      v[i] = load_wide<FloatWord>(at);
      for (std::int64_t other = 0; other < prefetched; other += Vectors * kFloatLanes) {
        __builtin_prefetch(at + ahead + other, 0, 3);
      }
    }
#pragma GCC unroll 4
    for (std::int64_t h = 0; h < Heads; ++h) {
      const VecF weight = set1(weights[h * kTileKeys + n]);
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < Vectors; ++i) {
        sums.at[h][i] = fma(weight, v[i], sums.at[h][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (std::int64_t h = 0; h < Heads; ++h) {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < Vectors; ++i) {
      float* at = out + h * out_stride + d + i * kFloatLanes;
      store(at, fma(load(at), set1(keep[h]), sums.at[h][i]));
    }
  }
}

// out[h][d] = keep[h] out[h][d] + sum over n of weights[h][n] v_n[d].
template <int Heads, class T>
inline void decode_sums(const float* weights, const float* keep, const WideRows<T>& value,
                        std::int64_t num_keys, std::int64_t width, std::int64_t out_stride,
                        float* out) {
  const std::int64_t ahead = elements_ahead(value, width);
  if constexpr (Heads == 4) {
    if (width % (2 * kGroupLanes) == 0) {  // whole rows in order, for half of the heads at a time
      for (std::int64_t d = 0; d < width; d += 2 * kGroupLanes) {
        for (std::int64_t h = 0; h < Heads; h += 2) {
          decode_columns<2, 2 * kGroupVectors>(weights + h * kTileKeys, keep + h, value, num_keys,
                                               d, ahead, h == 0 ? 2 * kGroupLanes : 0, out_stride,
                                               out + h * out_stride);
        }
      }
      return;
    }
  }
  for (std::int64_t d = 0; d < width; d += kGroupLanes) {
    const std::int64_t left = (width - d) / kFloatLanes;
    with_vectors(left < kGroupVectors ? left : kGroupVectors, [&](auto vectors) {
      decode_columns<Heads, vectors.kCount>(weights, keep, value, num_keys, d, ahead,
                                            d == 0 ? width : 0, out_stride, out);
    });
  }
}

// The online softmax of one head over a block: logits [kTileKeys] to weights; returns what earlier
// sums are multiplied by.
inline float decode_weights(std::int64_t num_keys, float* logits, float* partial) {
  const std::int64_t lanes = kFloatLanes;
  for (std::int64_t n = num_keys; n % lanes != 0; ++n) {
    logits[n] = -kInfinity;
  }
  VecF most = set1(partial[0]);
  for (std::int64_t n = 0; n < num_keys; n += lanes) {
    most = max(load(logits + n), most);
  }
  const float largest = fold_lanes(most, [](VecF a, VecF b) { return max(a, b); });
  VecF sums = zero();
  for (std::int64_t n = 0; n < num_keys; n += lanes) {
    const VecF weights = exp(load(logits + n) - largest);
    sums += weights;
    store(logits + n, weights);
  }
  const float keep = exp(set1(partial[0] - largest))[0];
  partial[0] = largest;
  partial[1] = partial[1] * keep + fold_lanes(sums, [](VecF a, VecF b) { return a + b; });
  return keep;
}

// One block of at most kTileKeys keys for Heads heads. partial: [Heads][2 + width].
template <class Word, int Heads, class T>
inline void decode_block(const float* query, std::int64_t width, const WideRows<T>& key,
                         const WideRows<T>& value, std::int64_t num_keys, float factor,
                         float* partial) {
  constexpr std::int64_t kKeys = kFloatLanes / Heads;
  float logits[Heads * kTileKeys];
  float keep[Heads];
  for (std::int64_t n = 0; n < num_keys; n += kKeys) {
    decode_dots<Word, Heads>(query, width, from_key(key, n), num_keys - n, factor, logits + n);
  }
  const std::int64_t stride = width + 2;
  for (std::int64_t h = 0; h < Heads; ++h) {
    keep[h] = decode_weights(num_keys, logits + h * kTileKeys, partial + h * stride);
  }
  decode_sums<Heads>(logits, keep, value, num_keys, width, stride, partial + 2);
}

template <class Word, class T>
inline void decode_heads(const float* query, std::int64_t num_heads, std::int64_t width,
                         const WideRows<T>& key, const WideRows<T>& value, std::int64_t num_keys,
                         float factor, float* partial) {
  std::int64_t h = 0;
  const std::int64_t stride = width + 2;
  for (; h + 4 <= num_heads; h += 4) {
    decode_block<Word, 4>(query + h * width / Word::kNumbers, width, key, value, num_keys, factor,
                          partial + h * stride);
  }
  if (h + 2 <= num_heads) {
    decode_block<Word, 2>(query + h * width / Word::kNumbers, width, key, value, num_keys, factor,
                          partial + h * stride);
    h += 2;
  }
  if (h < num_heads) {
    decode_block<Word, 1>(query + h * width / Word::kNumbers, width, key, value, num_keys, factor,
                          partial + h * stride);
  }
}

inline std::size_t decode_scratch(std::int64_t head_dim, std::int64_t num_heads) {
  const std::int64_t width = padded_head_dim(head_dim);
  return static_cast<std::size_t>(num_heads * width + 16 + num_heads * (width + 2) + 16 +
                                  2 * kTileKeys * width);
}

// Rows that are no multiple of the lanes are copied to padded ones first.
inline WideRows<float> padded_rows(const HeadRows& rows, std::int64_t begin, std::int64_t end,
                                   std::int64_t head_dim, float* scratch) {
  const std::int64_t width = padded_head_dim(head_dim);
  for (std::int64_t n = begin; n < end; ++n) {
    float* row = scratch + (n - begin) * width;
    load_row(rows.data, rows.dtype, n * rows.stride, head_dim, row);
    fill(row + head_dim, width - head_dim, 0.0F);
  }
  return {scratch, width};
}

template <class T>
inline WideRows<T> wide_rows(const HeadRows& rows, std::int64_t begin) {
  return {static_cast<const T*>(rows.data) + begin * rows.stride, rows.stride};
}

// The heads' queries as rows of words; partial results of nothing.
template <class Word>
inline void start_decode(const DecodeTask& task, float* query, float* partial) {
  const AttentionUnit& unit = task.unit;
  const std::int64_t width = padded_head_dim(unit.head_dim);
  const UnitRows& from = task.is_prefix ? unit.prefix_query : unit.query;
  for (std::int64_t h = 0; h < unit.rows.heads_per_unit; ++h) {
    float row[kMaxHeadDim];
    load_words<Word>(from.data, from.dtype, h * from.head_stride, unit.head_dim, row);
    copy_row(row, width / Word::kNumbers, query + h * width / Word::kNumbers);
    fill(partial + h * (width + 2), width + 2, 0.0F);
    partial[h * (width + 2)] = kLowest;
  }
}

template <class Word>
inline void decode_words(const DecodeTask& task, float* memory) {
  const AttentionUnit& unit = task.unit;
  const std::int64_t num_heads = unit.rows.heads_per_unit;
  const std::int64_t width = padded_head_dim(unit.head_dim);
  Scratch scratch(memory);
  float* query = scratch.take(num_heads * width);
  float* partial = scratch.take(num_heads * (width + 2));
  float* key_memory = scratch.take(kTileKeys * width);
  float* value_memory = scratch.take(kTileKeys * width);
  start_decode<Word>(task, query, partial);
  const HeadRows& key = task.is_prefix ? unit.prefix_key : unit.key;
  const HeadRows& value = task.is_prefix ? unit.prefix_value : unit.value;
  for (std::int64_t n = task.begin; n < task.end; n += kTileKeys) {
    const std::int64_t end = smaller(n + kTileKeys, task.end);
    if constexpr (Word::kNumbers == 1) {
      if (width != unit.head_dim) {
        decode_heads<Word>(
            query, num_heads, width, padded_rows(key, n, end, unit.head_dim, key_memory),
            padded_rows(value, n, end, unit.head_dim, value_memory), end - n, unit.scale, partial);
        continue;
      }
      if (key.dtype == DType::kFloat32) {
        decode_heads<Word>(query, num_heads, width, wide_rows<float>(key, n),
                           wide_rows<float>(value, n), end - n, unit.scale, partial);
        continue;
      }
    }
    decode_heads<Word>(query, num_heads, width, wide_rows<std::uint16_t>(key, n),
                       wide_rows<std::uint16_t>(value, n), end - n, unit.scale, partial);
  }
  for (std::int64_t h = 0; h < num_heads; ++h) {
    copy_row(partial + h * (width + 2), width + 2, task.partial + h * task.head_stride);
  }
}

// With pairs, only rows that are whole vectors of them are read as pairs.
template <class Word>
inline void decode(const DecodeTask& task, float* memory) {
  if (Word::kNumbers == 2 && task.unit.head_dim % (2 * kFloatLanes) != 0) {
    decode_words<FloatWord>(task, memory);
  } else {
    decode_words<Word>(task, memory);
  }
}

// Adds the runs of one head in order.
inline void merge(const MergeTask& task) {
  float largest = kLowest;
  for (std::int64_t i = 0; i < task.num_runs; ++i) {
    const float other = task.partials[i * task.run_stride];
    largest = other > largest ? other : largest;
  }
  float out[kMaxHeadDim] = {};
  float sum = 0.0F;
  for (std::int64_t i = 0; i < task.num_runs; ++i) {
    const float* partial = task.partials + i * task.run_stride;
    const float factor = exp(set1(partial[0] - largest))[0];
    sum += factor * partial[1];
    for (std::int64_t d = 0; d < task.head_dim; ++d) {
      out[d] += factor * partial[2 + d];
    }
  }
  const float inverse = sum == 0.0F ? 0.0F : 1.0F / sum;
  for (std::int64_t d = 0; d < task.head_dim; ++d) {
    out[d] *= inverse;
  }
  store_row(out, task.head_dim, task.out, task.dtype, 0);
  const float natural = largest + log(set1(sum))[0] + (sum - sum);
  *task.lse = sum == 0.0F ? -kInfinity : natural;
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
