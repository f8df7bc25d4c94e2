// The tasks of the backward pass.

#include <cstring>
#include <vector>

#include "kernels/attention/problem.h"

namespace paperlab::kernels {
namespace {

// A run of key blocks of one key head.
struct Chunk {
  std::int64_t first_block;
  std::int64_t end_block;
};

// The work of a block is the number of row tiles that see some of it.
std::vector<std::int64_t> block_work(const AttentionUnit& unit) {
  const std::int64_t count = num_blocks(unit.num_prefix) + num_blocks(unit.num_keys);
  std::vector<std::int64_t> work(static_cast<std::size_t>(count), 1);  // its gradients are written
  for (std::int64_t t = 0; t < unit.rows.num_tiles; ++t) {
    const std::int64_t heads = unit.rows.heads_per_unit;
    const std::int64_t last = smaller((t + 1) * kTileRows, unit.rows.num_rows) - 1;
    const TileKeys keys =
        tile_keys(unit.seen_by(t * kTileRows / heads), unit.seen_by(last / heads));
    for (std::int64_t i = 0; i < count; ++i) {
      const KeyBlock part = seen_part(block_at(i, unit.num_prefix, unit.num_keys), keys);
      work[static_cast<std::size_t>(i)] += part.begin < part.end ? 4 : 0;
    }
  }
  return work;
}

// Chunks of about equal work, in the order of blocks; some may be empty.
std::vector<Chunk> key_chunks(const AttentionUnit& unit, std::int64_t num_chunks) {
  const std::vector<std::int64_t> work = block_work(unit);
  std::int64_t total = 0;
  for (const std::int64_t w : work) {
    total += w;
  }
  std::vector<Chunk> chunks(static_cast<std::size_t>(num_chunks));
  std::int64_t before = 0;
  std::int64_t block = 0;
  for (std::int64_t c = 0; c < num_chunks; ++c) {
    chunks[static_cast<std::size_t>(c)].first_block = block;
    while (block < std::ssize(work) &&
           chunk_of(before, work[static_cast<std::size_t>(block)], total, num_chunks) <= c) {
      before += work[static_cast<std::size_t>(block++)];
    }
    chunks[static_cast<std::size_t>(c)].end_block = block;
  }
  return chunks;
}

// What the tasks of a backward pass share.
struct Backward {
  Backward(const AttentionInputs& inputs, const AttentionBackwardInputs& forward_pass,
           const AttentionGradients& results)
      : in(inputs),
        forward(forward_pass),
        gradients(results),
        g(inputs),
        // The bits of a single query's gradient must not depend on the batch.
        num_chunks(num_key_chunks(g.num_queries == 1 ? 1 : g.batch * g.num_key_heads,
                                  num_blocks(g.num_prefix) + num_blocks(g.num_keys))),
        unit_floats(g.rows.num_tiles * padded_head_dim(g.head_dim) * kTileRows),
        chunk_floats(g.batch * g.rows.num_units * unit_floats),
        has_prefix_query(in.prefix_query.data != nullptr && g.num_prefix > 0),
        delta(static_cast<std::size_t>(g.batch * g.num_heads * g.num_queries)),
        query_sums(static_cast<std::size_t>(num_chunks * chunk_floats)),
        prefix_query_sums(
            static_cast<std::size_t>(has_prefix_query ? num_chunks * chunk_floats : 0)) {}

  const AttentionInputs& in;
  const AttentionBackwardInputs& forward;
  const AttentionGradients& gradients;
  Geometry g;
  std::int64_t num_chunks;
  std::int64_t unit_floats;   // of one unit's query gradient
  std::int64_t chunk_floats;  // of all units
  bool has_prefix_query;
  Floats delta;  // [B][units][rows]
  Floats query_sums;
  Floats prefix_query_sums;
};

void compute_delta(Backward& call, const Executor& executor) {
  const Geometry& g = call.g;
  const AttentionCpu kernel = attention_tasks(call.in.query);
  WorkerScratch scratch(static_cast<std::size_t>(2 * padded_head_dim(g.head_dim)), executor);
  parallel_for(executor, g.batch * g.rows.num_units, [&](std::int64_t number, int worker) {
    const std::int64_t b = number / g.rows.num_units;
    const std::int64_t index = number % g.rows.num_units;
    const std::int64_t head = index * g.rows.heads_per_unit;
    const std::int64_t at = (b * g.num_heads + head) * g.num_queries;
    const auto* grad_lse = static_cast<const float*>(call.forward.grad_lse);
    kernel.delta({unit_at(call.in, g, b, index), unit_rows(call.forward.grad_out, b, head),
                  unit_rows(call.forward.out, b, head),
                  grad_lse == nullptr ? nullptr : grad_lse + at, call.delta.data() + at},
                 scratch.of(worker));
  });
}

// The units of key head `key_head` and where their gradients go.
struct KeyHead {
  KeyHead(const Backward& call, std::int64_t b, std::int64_t key_head) {
    const Geometry& g = call.g;
    const std::int64_t share = g.rows.units_per_key_head;
    for (std::int64_t u = 0; u < share; ++u) {
      const std::int64_t index = key_head * share + u;
      const std::int64_t head = index * g.rows.heads_per_unit;
      units.push_back(unit_at(call.in, g, b, index));
      grad_out.push_back(unit_rows(call.forward.grad_out, b, head));
      if (g.num_prefix > 0) {
        const std::int64_t prefix_head = head / (g.num_heads / g.num_prefix_heads);
        grad_prefix_key.push_back(head_rows(call.gradients.prefix_key, b, prefix_head));
        grad_prefix_value.push_back(head_rows(call.gradients.prefix_value, b, prefix_head));
      }
    }
  }

  std::vector<AttentionUnit> units;
  std::vector<UnitRows> grad_out;
  std::vector<MutableHeadRows> grad_prefix_key;
  std::vector<MutableHeadRows> grad_prefix_value;
};

void compute_key_gradients(Backward& call, const Executor& executor) {
  const Geometry& g = call.g;
  const AttentionCpu kernel = attention_tasks(call.in.query);
  WorkerScratch scratch(kernel.backward_scratch(g.head_dim), executor);
  const std::int64_t num_key_heads = g.batch * g.num_key_heads;
  std::vector<std::vector<Chunk>> chunks;  // of each batch row
  chunks.reserve(static_cast<std::size_t>(g.batch));
  for (std::int64_t b = 0; b < g.batch; ++b) {
    chunks.push_back(key_chunks(unit_at(call.in, g, b, 0), call.num_chunks));
  }
  parallel_for(executor, num_key_heads * call.num_chunks, [&](std::int64_t number, int worker) {
    const std::int64_t chunk = number / num_key_heads;
    const std::int64_t b = number % num_key_heads / g.num_key_heads;
    const std::int64_t key_head = number % g.num_key_heads;
    const KeyHead head(call, b, key_head);
    const Chunk& blocks = chunks[static_cast<std::size_t>(b)][static_cast<std::size_t>(chunk)];
    const std::int64_t unit = b * g.rows.num_units + key_head * g.rows.units_per_key_head;
    const std::int64_t rows = unit * g.rows.num_rows;
    const std::int64_t sums = chunk * call.chunk_floats + unit * call.unit_floats;
    float* grad_query = call.query_sums.data() + sums;
    kernel.backward(
        {head.units.data(), head.grad_out.data(),
         static_cast<const float*>(call.forward.lse) + rows, call.delta.data() + rows,
         blocks.first_block, blocks.end_block, grad_query,
         call.has_prefix_query ? call.prefix_query_sums.data() + sums : grad_query,
         head_rows(call.gradients.key, b, key_head), head_rows(call.gradients.value, b, key_head),
         head.grad_prefix_key.data(), head.grad_prefix_value.data()},
        scratch.of(worker));
  });
}

void reduce_query_gradients(const Backward& call, const float* sums, const TensorView& gradient,
                            const Executor& executor) {
  const Geometry& g = call.g;
  const AttentionCpu kernel = attention_tasks(call.in.query);
  WorkerScratch scratch(static_cast<std::size_t>(2 * padded_head_dim(g.head_dim) * kTileRows),
                        executor);
  parallel_for(executor, g.batch * g.rows.num_units, [&](std::int64_t number, int worker) {
    const std::int64_t b = number / g.rows.num_units;
    const std::int64_t index = number % g.rows.num_units;
    kernel.reduce(
        {unit_at(call.in, g, b, index), sums + number * call.unit_floats, call.chunk_floats,
         call.num_chunks, unit_rows(gradient, b, index * g.rows.heads_per_unit)},
        scratch.of(worker));
  });
}

// A gradient of zero.
void clear(const TensorView& view) {
  for (std::int64_t b = 0; view.data != nullptr && b < view.size[0]; ++b) {
    for (std::int64_t h = 0; h < view.size[1]; ++h) {
      for (std::int64_t t = 0; t < view.size[2]; ++t) {
        const std::int64_t at = t * view.stride[2] * element_bytes(view.dtype);
        std::memset(static_cast<char*>(head_data(view, b, h)) + at, 0,
                    static_cast<std::size_t>(view.size[3] * element_bytes(view.dtype)));
      }
    }
  }
}

}  // namespace

void backward_tasks(const AttentionInputs& in, const AttentionBackwardInputs& forward,
                    const AttentionGradients& gradients, const Executor& executor) {
  Backward call(in, forward, gradients);
  if (call.g.is_empty() || call.g.num_keys + call.g.num_prefix == 0) {
    for (const TensorView* view :
         {&gradients.query, &gradients.key, &gradients.value, &gradients.prefix_query,
          &gradients.prefix_key, &gradients.prefix_value}) {
      clear(*view);
    }
    return;
  }
  compute_delta(call, executor);
  compute_key_gradients(call, executor);
  reduce_query_gradients(call, call.query_sums.data(), gradients.query, executor);
  if (call.has_prefix_query) {
    reduce_query_gradients(call, call.prefix_query_sums.data(), gradients.prefix_query, executor);
  } else {
    clear(gradients.prefix_query);
  }
}

}  // namespace paperlab::kernels
