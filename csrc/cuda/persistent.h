// A whole sequence in one kernel, its matrix in shared memory. A block owns all gates of `units` hidden units for
// `rows` rows of the batch; the blocks of a group exchange h (forward) or ∂L/∂rh (backward) once a step.
#pragma once

#include "cuda/exchange.h"
#include "cuda/product.h"
#include "cuda/unit.h"

namespace fastrnn::cuda {

// The block's share, and where its shared memory begins: matrix, partial sums, states, then the exchange's.
template <class Args, class Format>
struct Share {
  const Args& a;
  int units, rows;  // of this block: fewer at the ends
  int64_t first_unit, first_row;
  char* matrix;
  Partials partials;
  float* states;  // [S, rows, units]

  FASTRNN_FN static int64_t matrix_bytes(const Tiling& t) {
    return static_cast<int64_t>(t.matrix_rows) * t.depth * static_cast<int64_t>(sizeof(typename Format::Storage));
  }
  FASTRNN_FN static int64_t states_bytes(const Tiling& t, int states) {
    return round_up(static_cast<int64_t>(states) * t.rows * t.units * static_cast<int64_t>(sizeof(float)), 16);
  }
  FASTRNN_FN static int64_t operand_bytes(const Tiling& t) {
    return round_up(t.rows, kTileColumns) * t.depth * static_cast<int64_t>(sizeof(typename Format::Storage));
  }
  template <class Through>
  FASTRNN_FN static int64_t shared_bytes(const Tiling& t, int states) {
    return matrix_bytes(t) + Partials::bytes(t) + states_bytes(t, states) + Through::shared_bytes(t, operand_bytes(t));
  }

  FASTRNN_DEVICE Share(Block& block, const Args& a)
      : a(a),
        first_unit(block.x() * a.tiling.units),
        first_row(block.y() * a.tiling.rows),
        matrix(block.shared()),
        partials{reinterpret_cast<float*>(matrix + matrix_bytes(a.tiling)), a.tiling.matrix_rows, a.tiling.warps_deep,
                 Partials::columns_of(a.tiling.rows)} {
    const int64_t left = a.hidden - first_unit, below = a.rows.batch - first_row;
    units = static_cast<int>(left < a.tiling.units ? left : a.tiling.units);
    rows = static_cast<int>(below < a.tiling.rows ? below : a.tiling.rows);
    states = reinterpret_cast<float*>(reinterpret_cast<char*>(partials.memory) + Partials::bytes(a.tiling));
  }
  FASTRNN_DEVICE char* after_states(int count) const {
    return reinterpret_cast<char*>(states) + states_bytes(a.tiling, count);
  }
  FASTRNN_DEVICE float& state(int s, int row, int unit) const {
    return states[(static_cast<int64_t>(s) * a.tiling.rows + row) * a.tiling.units + unit];
  }

  // Calls `each(row, unit, column)` for the units of `columns` rows from `from` on, shared by the threads; column
  // counts from `from`.
  template <class Each>
  FASTRNN_DEVICE void each_unit(Block& block, int from, int columns, const Each& each) const {
    for (int n = block.thread(); n < columns * units; n += block.threads()) {
      each(from + n / units, n % units, n / units);
    }
  }
  // Whether each_unit gives this thread something in the first pass, and what it gives it first.
  FASTRNN_DEVICE bool first_unit_of(Block& block, int* row, int* unit) const {
    if (units <= 0 || block.thread() >= pass_columns(0) * units) return false;
    *row = block.thread() / units;
    *unit = block.thread() % units;
    return true;
  }
  FASTRNN_DEVICE int pass_columns(int from) const { return rows - from < kPassColumns ? rows - from : kPassColumns; }
};

template <class Cell, class Format, class Through>
struct PersistentForward {
  using Args = ForwardArgs;
  using T = typename Format::Storage;
  using U = Unit<Cell, T>;
  using V = typename U::V;
  using Mine = Share<Args, Format>;
  static constexpr int R = Cell::kRecurrent, S = Cell::kStates;

  static FASTRNN_FN int64_t shared_bytes(const Tiling& t) { return Mine::template shared_bytes<Through>(t, S); }

  static FASTRNN_DEVICE void run(Block& block, const Args& a) {
    const Mine mine(block, a);
    const int64_t H = a.hidden, depth = a.tiling.depth;
    const T* w = static_cast<const T*>(a.w_hh);
    Format::pack(block, mine.matrix, a.tiling.matrix_rows, static_cast<int>(depth / Format::kBlock),
                 [&](int row, int64_t column) {
                   const int gate = row / a.tiling.units, unit = row % a.tiling.units;
                   if (gate >= R || unit >= mine.units || column >= H) return 0.0f;
                   return widen(w[(gate * H + mine.first_unit + unit) * H + column]);
                 });
    Through through(block, a, mine.after_states(S), Mine::operand_bytes(a.tiling));
    mine.each_unit(block, 0, mine.rows, [&](int row, int unit, int) {
      const int64_t b = mine.first_row + row, u = mine.first_unit + unit;
      for (int s = 0; s < S; ++s) mine.state(s, row, unit) = U::initial(a, s, b, u);
      through.template publish<Format>(block, 0, row * depth + u, mine.state(0, row, unit));
    });
    through.arrive(block);
    for (int64_t k = 0; k < a.rows.steps; ++k) {
      typename U::Waiting waiting;
      fetch(block, a, mine, k, waiting);
      through.wait(block);
      for (int from = 0; from < mine.rows; from += kPassColumns) {
        const int columns = mine.pass_columns(from);
        const int64_t stride = depth * static_cast<int64_t>(sizeof(T));
        if (from > 0) block.sync();  // the partial sums have been read
        multiply<Format>(block, a.tiling, mine.matrix, through.buffer(k) + from * stride, stride, columns,
                         mine.partials, typename Through::Load());
        block.sync();
        mine.each_unit(block, from, columns, [&](int row, int unit, int column) {
          const bool waited = row * mine.units + unit == block.thread();
          step(block, a, mine, through, k, row, unit, column, waiting, waited);
        });
      }
      if (k + 1 < a.rows.steps) through.arrive(block);
    }
  }

  // What this thread's first unit needs of memory, asked for while the group's other blocks are waited for: it comes
  // from far away.
  static FASTRNN_DEVICE void fetch(Block& block, const Args& a, const Mine& mine, int64_t k,
                                   typename U::Waiting& waiting) {
    int row, unit;
    if (!mine.first_unit_of(block, &row, &unit)) return;
    const int64_t b = mine.first_row + row, t = a.rows.step(k);
    if (a.rows.active(t, b)) U::fetch(a, a.rows.row(t, b), mine.first_unit + unit, waiting);
  }

  // `waiting`: what has been fetched for it, if it was.
  static FASTRNN_DEVICE void step(Block& block, const Args& a, const Mine& mine, Through& through, int64_t k, int row,
                                  int unit, int column, typename U::Waiting waiting, bool waited) {
    const int64_t b = mine.first_row + row, u = mine.first_unit + unit, t = a.rows.step(k);
    V states[S];
    for (int s = 0; s < S; ++s) states[s] = mine.state(s, row, unit);
    if (a.rows.active(t, b)) {
      const int64_t n = a.rows.row(t, b);
      typename U::Inputs in;
      if (!waited) U::fetch(a, n, u, waiting);
      U::load_input(a, u, waiting, in);
      FASTRNN_UNROLL
      for (int g = 0; g < R; ++g) in.rh[g] = mine.partials.sum(g * a.tiling.units + unit, column);
      U::forward(a, n, u, in, states);
      put<T>(states[0].v, a.y, n * a.hidden + u);
    } else if (a.rows.exists(t, b)) {
      put<T>(0.0f, a.y, a.rows.row(t, b) * a.hidden + u);
    }
    for (int s = 0; s < S; ++s) mine.state(s, row, unit) = U::conclude(a, s, k, b, u, states[s].v);
    if (k + 1 < a.rows.steps) {
      through.template publish<Format>(block, k + 1, row * a.tiling.depth + u, mine.state(0, row, unit));
    }
  }
};

template <class Cell, class Format, class Through>
struct PersistentBackward {
  using Args = BackwardArgs;
  using T = typename Format::Storage;
  using U = Unit<Cell, T>;
  using V = typename U::V;
  using Mine = Share<Args, Format>;
  static constexpr int R = Cell::kRecurrent, S = Cell::kStates;

  static FASTRNN_FN int64_t shared_bytes(const Tiling& t) { return Mine::template shared_bytes<Through>(t, S); }

  // states: gradients of the states after the step at hand, of h less the path through the next step's product.
  static FASTRNN_DEVICE void run(Block& block, const Args& a) {
    const Mine mine(block, a);
    const int64_t H = a.hidden, depth = a.tiling.depth, steps = a.rows.steps;
    const T* w = static_cast<const T*>(a.w_hh);
    Format::pack(block, mine.matrix, a.tiling.matrix_rows, static_cast<int>(depth / Format::kBlock),
                 [&](int row, int64_t column) {
                   if (row >= mine.units || column >= R * H) return 0.0f;
                   return widen(w[column * H + mine.first_unit + row]);
                 });
    Through through(block, a, mine.after_states(S), Mine::operand_bytes(a.tiling));
    mine.each_unit(block, 0, mine.rows, [&](int row, int unit, int) {
      for (int s = 0; s < S; ++s) {
        mine.state(s, row, unit) = U::final_gradient(a, s, mine.first_row + row, mine.first_unit + unit);
      }
    });
    block.sync();
    for (int64_t undone = 0; undone <= steps; ++undone) {
      const bool product = undone > 0;
      if (undone == steps && !wants_initial(a)) break;
      typename U::WaitingKnown waiting;
      if (undone < steps) fetch(block, a, mine, steps - 1 - undone, waiting);
      if (product) through.wait(block);
      for (int from = 0; from < mine.rows; from += kPassColumns) {
        const int columns = mine.pass_columns(from);
        const int64_t stride = depth * static_cast<int64_t>(sizeof(T));
        if (product) {
          if (from > 0) block.sync();
          multiply<Format>(block, a.tiling, mine.matrix, through.buffer(undone) + from * stride, stride, columns,
                           mine.partials, typename Through::Load());
          block.sync();
        }
        mine.each_unit(block, from, columns, [&](int row, int unit, int column) {
          const bool waited = row * mine.units + unit == block.thread();
          step(block, a, mine, through, undone, row, unit, column, waiting, waited);
        });
      }
      if (undone + 1 < steps || (undone + 1 == steps && wants_initial(a))) through.arrive(block);
    }
  }

  static FASTRNN_DEVICE bool wants_initial(const Args& a) {
    for (int s = 0; s < S; ++s) {
      if (a.grad_initial[s] != nullptr) return true;
    }
    return false;
  }

  // As that of the forward pass.
  static FASTRNN_DEVICE void fetch(Block& block, const Args& a, const Mine& mine, int64_t k,
                                   typename U::WaitingKnown& waiting) {
    int row, unit;
    if (!mine.first_unit_of(block, &row, &unit)) return;
    const int64_t b = mine.first_row + row, u = mine.first_unit + unit, t = a.rows.step(k);
    if (!a.rows.active(t, b)) return;
    U::fetch(a, k, b, a.rows.row(t, b), u, waiting);
    U::fetch_output(a, a.rows.row(t, b), u, waiting);
  }

  // Undoes the step before the last `undone` ones; when all are undone, the gradients are those of the initial states.
  // `waiting`: what has been fetched for it, if it was.
  static FASTRNN_DEVICE void step(Block& block, const Args& a, const Mine& mine, Through& through, int64_t undone,
                                  int row, int unit, int column, typename U::WaitingKnown waiting, bool waited) {
    const int64_t b = mine.first_row + row, u = mine.first_unit + unit, steps = a.rows.steps, k = steps - 1 - undone;
    V grads[S];
    for (int s = 0; s < S; ++s) {
      float value = mine.state(s, row, unit);
      if (undone > 0) {
        if (s == 0) value += mine.partials.sum(unit, column);
        value = U::divert(a, s, k + 1, b, u, value);
      }
      grads[s] = value;
    }
    if (undone == steps) {
      for (int s = 0; s < S; ++s) U::put_initial(a, s, b, u, grads[s].v);
      return;
    }
    for (int s = 0; s < S; ++s) U::store_later(a, s, k, b, u, grads[s].v);
    const int64_t t = a.rows.step(k);
    V drh[R];
    for (int g = 0; g < R; ++g) drh[g] = V::zero();
    const bool active = a.rows.active(t, b);
    const int64_t n = a.rows.exists(t, b) ? a.rows.row(t, b) : -1;
    typename U::Known known;
    if (active) {
      if (!waited) {
        U::fetch(a, k, b, n, u, waiting);
        U::fetch_output(a, n, u, waiting);
      }
      U::load_known(a, u, waiting, known);
      grads[0] = V(U::bounded(a, grads[0].v + widen(waiting.grad_y)));
    }
    if (a.dh != nullptr && n >= 0) put<T>(active ? grads[0].v : 0.0f, a.dh, n * a.hidden + u);
    if (active) {
      U::backward(a, n, u, known, 0.0f, grads, drh);
    } else {
      U::no_step(a, k, b, u);
    }
    for (int s = 0; s < S; ++s) mine.state(s, row, unit) = grads[s].v;
    if (undone + 1 < steps || wants_initial(a)) {
      for (int g = 0; g < R; ++g) {
        through.template publish<Format>(block, undone + 1, row * a.tiling.depth + g * a.hidden + u, drh[g].v);
      }
    }
  }
};

}  // namespace fastrnn::cuda
