// A whole sequence in one kernel, with the matrix in shared memory. A block owns all gates of `units` hidden units for
// `rows` batch rows; the blocks of a group exchange h (forward) or ∂L/∂rh (backward) at every step.
//
// Offsets within a step have 32 bits (Unit::Index); cuda/plan.cpp leaves larger calls to the step-wise driver.
#pragma once

#include "cuda/exchange.h"
#include "cuda/matrix.h"
#include "cuda/product.h"
#include "cuda/unit.h"

namespace fastrnn::cuda {

// One unit of one row of the block's share. `column`: the row's index in a pass; `first`: true for the thread's first
// element in a step
struct Element {
  int row, unit, column;
  bool first;
};

// The block's share, and its parts of shared memory: matrix, partial sums, states, per-unit numbers, lengths of the
// rows, then that of the exchange
template <class Args, class Format, class Through, int kStates, int kNumbers>
struct Share {
  const Args& a;
  int units, rows;  // of this block; fewer in the last blocks
  int first_unit, first_row;
  char* matrix;
  Partials partials;
  float* states;   // [S, rows, units]
  float* numbers;  // [kNumbers, units]: b_hh and parameters
  int* lengths;    // [rows], number of time steps of each row
  // A thread's first row and unit, and the distance to its next ones
  int row, unit, row_step, unit_step;

  FASTRNN_FN static int64_t matrix_bytes(const Tiling& t) {
    return static_cast<int64_t>(t.matrix_rows) * t.depth * static_cast<int64_t>(sizeof(typename Format::Storage));
  }
  FASTRNN_FN static int64_t states_bytes(const Tiling& t) {
    return round_up(int64_t{4} * kStates * t.rows * t.units, 16);
  }
  FASTRNN_FN static int64_t numbers_bytes(const Tiling& t) { return round_up(int64_t{4} * kNumbers * t.units, 16); }
  FASTRNN_FN static int64_t lengths_bytes(const Tiling& t) { return round_up(int64_t{4} * t.rows, 16); }
  FASTRNN_FN static int64_t operand_bytes(const Tiling& t) {
    return round_up(t.rows, kTileColumns) * Through::stride(t);
  }
  FASTRNN_FN static int64_t shared_bytes(const Tiling& t) {
    return matrix_bytes(t) + Partials::bytes(t) + states_bytes(t) + numbers_bytes(t) + lengths_bytes(t) +
           Through::shared_bytes(operand_bytes(t));
  }

  FASTRNN_DEVICE Share(Block& block, const Args& a)
      : a(a),
        first_unit(static_cast<int>(block.x()) * a.tiling.units),
        first_row(static_cast<int>(block.y()) * a.tiling.rows),
        matrix(block.shared()),
        partials{reinterpret_cast<float*>(matrix + matrix_bytes(a.tiling)), a.tiling.matrix_rows, a.tiling.warps_deep,
                 Partials::columns_of(a.tiling.rows)} {
    const int left = static_cast<int>(a.hidden) - first_unit, below = static_cast<int>(a.rows.batch) - first_row;
    units = left < a.tiling.units ? left : a.tiling.units;
    rows = below < a.tiling.rows ? below : a.tiling.rows;
    char* at = reinterpret_cast<char*>(partials.memory) + Partials::bytes(a.tiling);
    states = reinterpret_cast<float*>(at);
    numbers = reinterpret_cast<float*>(at + states_bytes(a.tiling));
    lengths = reinterpret_cast<int*>(at + states_bytes(a.tiling) + numbers_bytes(a.tiling));
    row = block.thread() / units;
    unit = block.thread() % units;
    row_step = block.threads() / units;
    unit_step = block.threads() % units;
  }
  FASTRNN_DEVICE OperandPart operand_part(int gates) const {
    return {gates,
            static_cast<int>(OperandPart::numbers_of_gate(a.hidden)),
            rows,
            units,
            first_unit,
            static_cast<int>(Through::stride(a.tiling)),
            operand_bytes(a.tiling)};
  }
  FASTRNN_DEVICE char* exchange() const { return reinterpret_cast<char*>(lengths) + lengths_bytes(a.tiling); }
  FASTRNN_DEVICE float& state(int s, int row, int unit) const {
    return states[(s * a.tiling.rows + row) * a.tiling.units + unit];
  }
  FASTRNN_DEVICE float& number(int n, int unit) const { return numbers[n * a.tiling.units + unit]; }

  // Reads values that are constant over the steps, because global memory is slow and L1 contents are invalidated at
  // every barrier of the grid. `number(n, u)`: that of unit u of the network. Must be followed by a sync.
  template <class Number>
  FASTRNN_DEVICE void load(Block& block, const Number& given) const {
    for (int n = 0; n < kNumbers; ++n) {
      for (int u = block.thread(); u < units; u += block.threads()) number(n, u) = given(n, first_unit + u);
    }
    for (int r = block.thread(); r < rows; r += block.threads()) {
      lengths[r] = static_cast<int>(a.rows.length(first_row + r));
    }
  }

  // Calls `each(element)` for the units of `columns` rows from `from` on, divided among the threads.
  template <class Each>
  FASTRNN_DEVICE void each_unit(Block& block, int from, int columns, const Each& each) const {
    Element e{row, unit, row, from == 0};
    while (e.column < columns) {
      e.row = from + e.column;
      each(e);
      e.first = false;
      e.column += row_step;
      e.unit += unit_step;
      if (e.unit >= units) {
        e.unit -= units;
        ++e.column;
      }
    }
  }
  FASTRNN_DEVICE Element first_element() const { return {row, unit, row, row < pass_columns(0)}; }
  FASTRNN_DEVICE int pass_columns(int from) const { return rows - from < kPassColumns ? rows - from : kPassColumns; }
};

template <class Cell, class Format, template <class> class ThroughOf>
struct PersistentForward {
  using Args = ForwardArgs;
  using T = typename Format::Storage;
  using Through = ThroughOf<Format>;
  using U = Unit<Cell, T, int>;
  using V = typename U::V;
  using Row = typename U::Row;
  static constexpr int R = Cell::kRecurrent, S = Cell::kStates, Q = Cell::kParameters;
  using Mine = Share<Args, Format, Through, S, R + Q>;

  static FASTRNN_FN int64_t shared_bytes(const Tiling& t) { return Mine::shared_bytes(t); }
  static constexpr int kWidest = U::kWidest;

  // Values that an element reads from memory, and whether its next step begins a later segment
  struct Fetched {
    typename U::Waiting unit;
    bool anew;
  };
  // Values that it writes to memory, stored after the operand has been sent
  struct Left {
    typename U::Outcome unit;
    bool active;
  };

  static FASTRNN_DEVICE void run(Block& block, const Args& a) {
    const Mine mine(block, a);
    const OperandPart operand = mine.operand_part(1);
    const int H = U::hidden(a), steps = static_cast<int>(a.rows.steps);
    const T* w = static_cast<const T*>(a.w_hh);
    Format::pack(block, mine.matrix, a.tiling.matrix_rows, static_cast<int>(a.tiling.depth) / Format::kBlock,
                 MatrixRows<T, R>(w, H, mine.first_unit, mine.units));
    mine.load(block, [&](int n, int u) {
      if (n >= R) return static_cast<float>(get<T>(a.parameters, (n - R) * H + u));
      return a.b_hh != nullptr ? static_cast<float>(get<T>(a.b_hh, n * H + u)) : 0.0f;
    });
    Through through(block, a, operand, mine.exchange());
    mine.each_unit(block, 0, mine.rows, [&](const Element& e) {
      const int b = mine.first_row + e.row, u = mine.first_unit + e.unit;
      for (int s = 0; s < S; ++s) mine.state(s, e.row, e.unit) = U::initial(a, s, b, u);
      through.publish(0, e.row, 0, e.unit, mine.state(0, e.row, e.unit));
    });
    through.send(block, 0);
    const WarpPart part(block, a.tiling, Format::kBlock);
    for (int k = 0; k < steps; ++k) {
      const Element own = mine.first_element();
      Fetched fetched;
      Left left;
      if (own.first) fetch(a, mine, k, own, fetched);
      through.wait(block, k);
      for (int from = 0; from < mine.rows; from += kPassColumns) {
        const int columns = mine.pass_columns(from);
        if (from > 0) block.sync();  // all threads have read the partial sums
        multiply<Format>(block, part, mine.matrix, through.buffer(k) + from * operand.stride, operand.stride, columns,
                         mine.partials, typename Through::Load());
        block.sync();
        mine.each_unit(block, from, columns, [&](const Element& e) {
          const bool last = k + 1 == steps;
          if (e.first) {
            const float h = step(a, mine, k, e, fetched, left);
            if (!last) through.publish(k + 1, e.row, 0, e.unit, h);
          } else {
            Fetched late;
            Left results;
            fetch(a, mine, k, e, late);
            const float h = step(a, mine, k, e, late, results);
            if (!last) through.publish(k + 1, e.row, 0, e.unit, h);
            store(a, mine, k, e, results);
          }
        });
      }
      if (k + 1 < steps) through.send(block, k + 1);
      if (own.first) store(a, mine, k, own, left);
    }
  }

  static FASTRNN_DEVICE Row row_of(const Args& a, const Mine& mine, int k, const Element& e) {
    return {a.rows.first_row(a.rows.step(k)), mine.first_row + e.row};
  }
  static FASTRNN_DEVICE bool active(const Args& a, const Mine& mine, int k, const Element& e) {
    return static_cast<int>(a.rows.step(k)) < mine.lengths[e.row];
  }

  static FASTRNN_DEVICE void fetch(const Args& a, const Mine& mine, int k, const Element& e, Fetched& out) {
    if (active(a, mine, k, e)) U::fetch(a, row_of(a, mine, k, e), mine.first_unit + e.unit, out.unit);
    out.anew = k + 1 < static_cast<int>(a.rows.steps) && a.rows.anew(k + 1, mine.first_row + e.row);
  }

  // Runs the element's step and returns h as the next product reads it.
  static FASTRNN_DEVICE float step(const Args& a, const Mine& mine, int k, const Element& e, const Fetched& fetched,
                                   Left& left) {
    V states[S];
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) states[s] = mine.state(s, e.row, e.unit);
    left.active = active(a, mine, k, e);
    if (left.active) {
      typename U::Inputs in;
      U::load_input(fetched.unit, in);
      mine.partials.sums(e.unit * R, e.column, in.rh);
      FASTRNN_UNROLL
      for (int g = 0; g < R; ++g) in.rh[g] = in.rh[g] + V(mine.number(g, e.unit));
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) in.parameters[q] = mine.number(R + q, e.unit);
      U::forward(in, states, left.unit);
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) states[s] = left.unit.next[s];
    }
    const bool last = k + 1 == static_cast<int>(a.rows.steps);
    const int b = mine.first_row + e.row, u = mine.first_unit + e.unit;
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) {
      states[s] = U::conclude(a, s, last, fetched.anew, b, u, states[s].v);
      mine.state(s, e.row, e.unit) = states[s].v;
    }
    return states[0].v;
  }

  static FASTRNN_DEVICE void store(const Args& a, const Mine& mine, int k, const Element& e, const Left& left) {
    const Row row = row_of(a, mine, k, e);
    const int u = mine.first_unit + e.unit;
    if (left.active) {
      U::put_output(a, row, u, left.unit.next[0].v);
      U::save(a, row, u, left.unit);
    } else if (a.rows.offsets == nullptr) {
      U::put_output(a, row, u, 0.0f);
    }
  }
};

template <class Cell, class Format, template <class> class ThroughOf>
struct PersistentBackward {
  using Args = BackwardArgs;
  using T = typename Format::Storage;
  using Through = ThroughOf<Format>;
  using U = Unit<Cell, T, int>;
  using V = typename U::V;
  using Row = typename U::Row;
  static constexpr int R = Cell::kRecurrent, S = Cell::kStates, Q = Cell::kParameters;
  using Mine = Share<Args, Format, Through, S, Q>;

  static FASTRNN_FN int64_t shared_bytes(const Tiling& t) { return Mine::shared_bytes(t); }
  static constexpr int kWidest = U::kWidest;

  // Values that an element reads from memory, and whether the step after this one began a later segment
  struct Fetched {
    typename U::WaitingKnown unit;
    bool anew_after;
  };
  // Values that it writes to memory, stored after the operand has been sent
  struct Left {
    typename U::Gradients unit;
    bool active;
  };

  // states: gradients of the states after the current step; of h without the path through the next step's product.
  static FASTRNN_DEVICE void run(Block& block, const Args& a) {
    const Mine mine(block, a);
    const OperandPart operand = mine.operand_part(R);
    const int H = U::hidden(a), steps = static_cast<int>(a.rows.steps);
    const T* w = static_cast<const T*>(a.w_hh);
    const bool initial = wants_initial(a);
    Format::pack(block, mine.matrix, a.tiling.matrix_rows, static_cast<int>(a.tiling.depth) / Format::kBlock,
                 MatrixColumns<T>{w, R, operand.gate_numbers, H, mine.first_unit, mine.units});
    mine.load(block, [&](int n, int u) { return static_cast<float>(get<T>(a.parameters, n * H + u)); });
    Through through(block, a, operand, mine.exchange());
    mine.each_unit(block, 0, mine.rows, [&](const Element& e) {
      for (int s = 0; s < S; ++s) {
        mine.state(s, e.row, e.unit) = U::final_gradient(a, s, mine.first_row + e.row, mine.first_unit + e.unit);
      }
    });
    block.sync();
    const WarpPart part(block, a.tiling, Format::kBlock);
    for (int undone = 0; undone <= steps; ++undone) {
      if (undone == steps && !initial) break;
      const Element own = mine.first_element();
      Fetched fetched;
      Left left;
      left.active = false;
      if (own.first) fetch(a, mine, undone, own, fetched);
      if (undone > 0) through.wait(block, undone - 1);
      for (int from = 0; from < mine.rows; from += kPassColumns) {
        const int columns = mine.pass_columns(from);
        if (undone > 0) {
          if (from > 0) block.sync();
          multiply<Format>(block, part, mine.matrix, through.buffer(undone - 1) + from * operand.stride, operand.stride,
                           columns, mine.partials, typename Through::Load());
          block.sync();
        }
        mine.each_unit(block, from, columns, [&](const Element& e) {
          if (e.first) {
            step(a, mine, undone, e, fetched, left);
            publish(a, through, undone, e, left);
          } else {
            Fetched late;
            Left results;
            fetch(a, mine, undone, e, late);
            step(a, mine, undone, e, late, results);
            publish(a, through, undone, e, results);
            store(a, mine, undone, e, results);
          }
        });
      }
      if (undone + 1 < steps || (undone + 1 == steps && initial)) through.send(block, undone);
      if (own.first) store(a, mine, undone, own, left);
    }
  }

  static FASTRNN_DEVICE bool wants_initial(const Args& a) {
    for (int s = 0; s < S; ++s) {
      if (a.grad_initial[s] != nullptr) return true;
    }
    return false;
  }
  // Index of the step before the last `undone` ones
  static FASTRNN_DEVICE int place(const Args& a, int undone) { return static_cast<int>(a.rows.steps) - 1 - undone; }
  static FASTRNN_DEVICE Row row_of(const Args& a, const Mine& mine, int k, const Element& e) {
    return {a.rows.first_row(a.rows.step(k)), mine.first_row + e.row};
  }
  static FASTRNN_DEVICE bool active(const Args& a, const Mine& mine, int k, const Element& e) {
    return static_cast<int>(a.rows.step(k)) < mine.lengths[e.row];
  }

  static FASTRNN_DEVICE void fetch(const Args& a, const Mine& mine, int undone, const Element& e, Fetched& out) {
    const int k = place(a, undone), b = mine.first_row + e.row, u = mine.first_unit + e.unit;
    out.anew_after = undone > 0 && k >= 0 && a.rows.anew(k + 1, b);
    if (k < 0 || !active(a, mine, k, e)) return;
    const Row row = row_of(a, mine, k, e);
    const bool anew = k > 0 && a.rows.anew(k, b), continues = k > 0 && !anew && active(a, mine, k - 1, e);
    U::fetch(a, row, continues ? row_of(a, mine, k - 1, e) : row, continues, anew, u, out.unit);
    U::fetch_output(a, row, u, out.unit);
  }

  // Runs backward the element's step before the last `undone` ones; after all steps the gradients are those of the
  // initial states.
  static FASTRNN_DEVICE void step(const Args& a, const Mine& mine, int undone, const Element& e, const Fetched& fetched,
                                  Left& left) {
    const int b = mine.first_row + e.row, u = mine.first_unit + e.unit, k = place(a, undone);
    V grads[S];
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) grads[s] = mine.state(s, e.row, e.unit);
    if (undone > 0) {
      V product[1];
      mine.partials.sums(e.unit, e.column, product);
      grads[0] = grads[0] + product[0];
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) grads[s] = U::divert(a, s, fetched.anew_after, b, u, grads[s].v);
    }
    left.active = k >= 0 && active(a, mine, k, e);
    if (k < 0) {
      for (int s = 0; s < S; ++s) U::put_initial(a, s, b, u, grads[s].v);
      return;
    }
    const Row row = row_of(a, mine, k, e);
    const bool exists = left.active || a.rows.offsets == nullptr;
    if (exists) {
      for (int s = 0; s < S; ++s) U::store_later(a, s, row, left.active, u, grads[s].v);
    }
    typename U::Known known;
    if (left.active) {
      U::load_known(fetched.unit, known);
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) known.parameters[q] = mine.number(q, e.unit);
      grads[0] = V(U::clipped(a, grads[0].v + widen(fetched.unit.grad_y)));
    }
    if (exists) U::put_hidden_gradient(a, row, u, left.active ? grads[0].v : 0.0f);
    if (left.active) {
      U::backward(known, 0.0f, grads, left.unit);
    } else {
      FASTRNN_UNROLL
      for (int g = 0; g < R; ++g) left.unit.drh[g] = V::zero();
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) mine.state(s, e.row, e.unit) = grads[s].v;
  }

  static FASTRNN_DEVICE void publish(const Args& a, const Through& through, int undone, const Element& e,
                                     const Left& left) {
    const int k = place(a, undone);
    if (k < 0 || (k == 0 && !wants_initial(a))) return;
    FASTRNN_UNROLL
    for (int g = 0; g < R; ++g) through.publish(undone, e.row, g, e.unit, left.unit.drh[g].v);
  }

  static FASTRNN_DEVICE void store(const Args& a, const Mine& mine, int undone, const Element& e, const Left& left) {
    const int k = place(a, undone);
    if (k < 0) return;
    const Row row = row_of(a, mine, k, e);
    if (left.active) {
      U::put_gradients(a, row, mine.first_unit + e.unit, left.unit);
    } else if (a.rows.offsets == nullptr) {
      U::no_step(a, row, mine.first_unit + e.unit);
    }
  }
};

}  // namespace fastrnn::cuda
