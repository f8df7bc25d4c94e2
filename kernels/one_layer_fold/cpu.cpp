// Compiled once per instruction set: see vec.h for what may be included here.
#include "kernels/one_layer_fold/cpu.h"

#include "kernels/common/query_table.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// A task's view of its group: which positions read rows, which read columns.
struct Fold {
  const AffineGroup& group;
  QueryTable table;
  FoldShape shape;
  int row_positions[kMaxStringLength];
  int num_row_positions = 0;
  int column_positions[kMaxStringLength];
  int num_column_positions = 0;

  Fold(const AffineGroup& of, QueryTable with)
      : group(of), table(with), shape(fold_shape(of.num_bits)) {
    for (int l = 0; l + 1 < group.length; ++l) {
      if (column_mask(shape, group.mask[l]) != 0) {
        column_positions[num_column_positions++] = l;
      } else {
        row_positions[num_row_positions++] = l;
      }
    }
  }
};

struct Columns {
  double* z;
  double* n;
  double* q;
  double* r;
  explicit Columns(double* scratch)
      : z(scratch),
        n(z + (1 << kMaxColumnBits)),
        q(n + (1 << kMaxColumnBits)),
        r(q + (1 << kMaxColumnBits)) {}
};

// Column parts of Z and N. A padded column has Z = inf, hence Q = R = 0.
void build_columns(const Fold& fold, const Columns& columns) {
  for (int block = 0; block < padded_columns(fold.shape) / kLanes; ++block) {
    Vec8d z = zero();
    Vec8d n = zero();
    for (int i = 0; i < fold.num_column_positions; ++i) {
      const int l = fold.column_positions[i];
      const double* e = fold.table.e + embedding_index(l, 0);
      const double* eu = fold.table.eu + embedding_index(l, 0);
      const std::uint8_t tokens = column_tokens(fold.group, fold.shape, l, block);
      z = z + select(tokens, set1(e[1]), set1(e[0]));
      n = n + select(tokens, set1(eu[1]), set1(eu[0]));
    }
    store(columns.z + block * kLanes, z);
    store(columns.n + block * kLanes, n);
  }
  for (int column = num_columns(fold.shape); column < kLanes; ++column) {
    columns.z[column] = __builtin_inf();
  }
}

struct RowPart {
  double z;
  double n;
};

// Row part of Z and N, the last token included.
RowPart row_part(const Fold& fold, int row) {
  const int last = embedding_index(fold.group.length - 1, fold.group.query);
  RowPart part{fold.table.e[last], fold.table.eu[last]};
  for (int i = 0; i < fold.num_row_positions; ++i) {
    const int l = fold.row_positions[i];
    const int at = embedding_index(l, row_token(fold.group, fold.shape, l, row));
    part.z += fold.table.e[at];
    part.n += fold.table.eu[at];
  }
  return part;
}

// Sums over the columns of two rows that differ in the label alone.
struct PairSums {
  Marginal plus;
  Marginal minus;
};

PairSums row_pair(const Fold& fold, const Columns& columns, RowPart plus, RowPart minus) {
  const Vec8d z_plus = set1(plus.z);
  const Vec8d n_plus = set1(plus.n);
  const Vec8d z_minus = set1(minus.z);
  const Vec8d n_minus = set1(minus.n);
  Vec8d q_plus = zero();
  Vec8d r_plus = zero();
  Vec8d q_minus = zero();
  Vec8d r_minus = zero();
  for (std::ptrdiff_t at = 0; at < padded_columns(fold.shape); at += kLanes) {
    const Vec8d z = load(columns.z + at);
    const Vec8d n = load(columns.n + at);
    const StringGradient a = string_gradient(z_plus + z, n_plus + n, 1.0, fold.group.weight);
    const StringGradient b = string_gradient(z_minus + z, n_minus + n, -1.0, fold.group.weight);
    q_plus = q_plus + a.q;
    r_plus = r_plus + a.r;
    q_minus = q_minus + b.q;
    r_minus = r_minus + b.r;
    // The pair is summed first: where the labels balance, the columns stay exactly 0.
    store(columns.q + at, load(columns.q + at) + (a.q + b.q));
    store(columns.r + at, load(columns.r + at) + (a.r + b.r));
  }
  return {{sum(q_plus), sum(r_plus)}, {sum(q_minus), sum(r_minus)}};
}

void add(Marginal& to, Marginal value) {
  to.q += value.q;
  to.r += value.r;
}

void scatter_pair(const Fold& fold, int row, const PairSums& sums, Marginal* out) {
  const Marginal both{sums.plus.q + sums.minus.q, sums.plus.r + sums.minus.r};
  add(out[embedding_index(fold.group.length - 1, fold.group.query)], both);
  for (int i = 0; i < fold.num_row_positions; ++i) {
    const int l = fold.row_positions[i];
    const int plus = row_token(fold.group, fold.shape, l, row);
    if (plus == row_token(fold.group, fold.shape, l, row + 1)) {
      add(out[embedding_index(l, plus)], both);
    } else {
      add(out[embedding_index(l, plus)], sums.plus);
      add(out[embedding_index(l, 1 - plus)], sums.minus);
    }
  }
}

void scatter_columns(const Fold& fold, const Columns& columns, Marginal* out) {
  for (int i = 0; i < fold.num_column_positions; ++i) {
    const int l = fold.column_positions[i];
    Vec8d q[2] = {zero(), zero()};
    Vec8d r[2] = {zero(), zero()};
    for (int block = 0; block < padded_columns(fold.shape) / kLanes; ++block) {
      const std::uint8_t tokens = column_tokens(fold.group, fold.shape, l, block);
      const Vec8d qs = load(columns.q + block * kLanes);
      const Vec8d rs = load(columns.r + block * kLanes);
      q[0] = q[0] + select(tokens, zero(), qs);
      q[1] = q[1] + select(tokens, qs, zero());
      r[0] = r[0] + select(tokens, zero(), rs);
      r[1] = r[1] + select(tokens, rs, zero());
    }
    for (int s = 0; s < 2; ++s) {
      out[embedding_index(l, s)] = {sum(q[s]), sum(r[s])};
    }
  }
}

// The only string of a group of length 1 attends to itself.
void single_string(const AffineGroup& group, QueryTable table, Marginal* out) {
  const Vec8d z = set1(table.e[group.query]);
  const StringGradient gradient =
      string_gradient(z, set1(table.eu[group.query]), 1.0, group.weight);
  double lanes[kLanes];
  store(lanes, gradient.q);
  out[group.query].q = lanes[0];
  store(lanes, gradient.r);
  out[group.query].r = lanes[0];
  out[1 - group.query] = {0.0, 0.0};
}

void task(const AffineGroup& group, RowRange rows, QueryTable table, double* scratch,
          Marginal* out) {
  if (group.num_bits == 0) {
    return single_string(group, table, out);
  }
  const Fold fold(group, table);
  const Columns columns(scratch);
  build_columns(fold, columns);
  for (std::ptrdiff_t at = 0; at < padded_columns(fold.shape); at += kLanes) {
    store(columns.q + at, zero());
    store(columns.r + at, zero());
  }
  for (int i = 0; i < 2 * group.length; ++i) {
    out[i] = {0.0, 0.0};
  }
  for (int row = rows.begin; row < rows.end; row += 2) {
    const PairSums sums = row_pair(fold, columns, row_part(fold, row), row_part(fold, row + 1));
    scatter_pair(fold, row, sums, out);
  }
  scatter_columns(fold, columns, out);
}

void evaluate(const AffineGroup& group, RowRange rows, QueryTable table, double* scratch,
              OneLayerEvaluation& out) {
  if (group.num_bits == 0) {
    return add_margins(set1(table.eu[group.query]) / set1(table.e[group.query]), 1, group.weight,
                       out);
  }
  const Fold fold(group, table);
  const Columns columns(scratch);
  build_columns(fold, columns);
  const int count = num_columns(fold.shape) < kColumnLanes ? num_columns(fold.shape) : kColumnLanes;
  for (int row = rows.begin; row < rows.end; ++row) {
    const RowPart part = row_part(fold, row);
    const Vec8d y = set1(row % 2 == 0 ? 1.0 : -1.0);
    for (std::ptrdiff_t at = 0; at < padded_columns(fold.shape); at += kLanes) {
      const Vec8d t = (set1(part.n) + load(columns.n + at)) / (set1(part.z) + load(columns.z + at));
      add_margins(y * t, count, group.weight, out);
    }
  }
}

}  // namespace

FoldCpu fold_cpu() { return {query_table, task, evaluate}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
