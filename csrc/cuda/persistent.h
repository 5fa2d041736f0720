// A whole sequence in one kernel. A block owns all gates of `units` hidden units for `rows` batch rows, and holds its
// part of the matrix in shared memory, or in registers if its sizes are known to the compiler (cuda/sizes.h); the
// blocks of a group exchange h (forward) or ∂L/∂rh (backward) at every step.
//
// Offsets within a step have 32 bits (Unit::Index); cuda/plan.cpp leaves larger calls to the step-wise driver.
#pragma once

#include "cuda/exchange.h"
#include "cuda/matrix.h"
#include "cuda/product.h"
#include "cuda/unit.h"

namespace fastrnn::cuda {

// One unit of one row of the block's share. `column`: the row's index in a pass; `ahead`: it is among those whose
// values a thread reads before it waits
struct Element {
  int row, unit, column;
  bool ahead;
};

// The block's share, and its parts of shared memory: matrix, partial sums, states, per-unit numbers, lengths of the
// rows, then that of the exchange. With known sizes a thread has at most one element and holds in registers what
// belongs to it.
template <class Args, class Format, class Through, class Sizes, int kStates, int kNumbers>
struct Share {
  static constexpr bool kKnown = Sizes::kKnown;

  const Args& a;
  const Tiling tiling;
  int units, rows;  // of this block; fewer in the last blocks
  int first_unit, first_row;
  char* matrix;
  Partials partials;
  float* states;   // [S, rows, units]
  float* numbers;  // [kNumbers, units]: b_hh and parameters
  int* lengths;    // [rows], number of time steps of each row
  // A thread's first row and unit, and the distance to its next ones
  int row, unit, row_step, unit_step;
  // Its own element's, if sizes are known: no steps beyond the ends of the batch and of the units
  float own_states[kStates], own_numbers[or_one(kNumbers)];
  int own_length;
  int first_time, time_step;  // of the steps in the order of computation
  bool observed = false;      // backward: gradients of states are stored for each step

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
        tiling(Sizes::tiling(a.tiling)),
        first_unit(static_cast<int>(block.x()) * tiling.units),
        first_row(static_cast<int>(block.y()) * tiling.rows),
        matrix(block.shared()),
        partials{reinterpret_cast<float*>(matrix + matrix_bytes(tiling)), tiling.matrix_rows, tiling.warps_deep,
                 Partials::columns_of(tiling.rows)} {
    const int left = static_cast<int>(a.hidden) - first_unit, below = static_cast<int>(a.rows.batch) - first_row;
    units = left < tiling.units ? left : tiling.units;
    rows = below < tiling.rows ? below : tiling.rows;
    char* at = reinterpret_cast<char*>(partials.memory) + Partials::bytes(tiling);
    states = reinterpret_cast<float*>(at);
    numbers = reinterpret_cast<float*>(at + states_bytes(tiling));
    lengths = reinterpret_cast<int*>(at + states_bytes(tiling) + numbers_bytes(tiling));
    const int across = kKnown ? tiling.units : units;
    row = block.thread() / across;
    unit = block.thread() % across;
    row_step = kThreads / across;
    unit_step = kThreads % across;
    first_time = static_cast<int>(a.rows.step(0));
    time_step = a.rows.reverse ? -1 : 1;
  }
  // The time step that is computed k-th, and the number of its first row
  FASTRNN_DEVICE int time(int k) const { return first_time + k * time_step; }
  FASTRNN_DEVICE StepRow<int> row_of(int k, const Element& e) const {
    const int t = time(k);
    return {a.rows.offsets != nullptr ? static_cast<int>(a.rows.offsets[t]) : t * static_cast<int>(a.rows.batch),
            first_row + e.row};
  }
  FASTRNN_DEVICE bool active(int k, const Element& e) const { return time(k) < length(e); }
  // Return true if the k-th step of the element's row begins a later segment.
  FASTRNN_DEVICE bool anew(int k, const Element& e) const {
    return a.rows.reset != nullptr && owns(e) && a.rows.anew(k, first_row + e.row);
  }
  // Return true if there is memory for a row that is inactive at some steps.
  FASTRNN_DEVICE bool padded(const Element& e) const { return a.rows.lengths != nullptr && owns(e); }
  // Return false for an element beyond the batch or the units, which a thread may have if sizes are known.
  FASTRNN_DEVICE bool owns(const Element& e) const { return !kKnown || (e.row < rows && e.unit < units); }
  // With known sizes whole tiles are sent.
  FASTRNN_DEVICE OperandPart operand_part(int gates) const {
    const int last = static_cast<int>(a.hidden) - (tiling.unit_slices - 1) * tiling.units;
    return {gates,
            kKnown ? Sizes::kHidden : static_cast<int>(round_up(a.hidden, kGranule)),
            kKnown ? tiling.rows : rows,
            kKnown ? tiling.units : units,
            kKnown ? tiling.units : last,
            first_unit,
            static_cast<int>(Through::stride(tiling)),
            static_cast<int>(operand_bytes(tiling)),
            kKnown};
  }
  FASTRNN_DEVICE char* exchange() const { return reinterpret_cast<char*>(lengths) + lengths_bytes(tiling); }
  FASTRNN_DEVICE float& state(int s, const Element& e) {
    if constexpr (kKnown) return own_states[s];
    return states[(s * tiling.rows + e.row) * tiling.units + e.unit];
  }
  FASTRNN_DEVICE float number(int n, const Element& e) const {
    if constexpr (kKnown) return own_numbers[n];
    return numbers[n * tiling.units + e.unit];
  }
  FASTRNN_DEVICE int length(const Element& e) const {
    if constexpr (kKnown) return own_length;
    return lengths[e.row];
  }

  // Reads values that are constant over the steps, because global memory is slow and L1 contents are invalidated at
  // every barrier of the grid. `number(n, u)`: that of unit u of the network. Must be followed by a sync.
  template <class Number>
  FASTRNN_DEVICE void load(Block& block, const Number& given) {
    if constexpr (kKnown) {
      const bool own = owns(Element{row, unit, row, true});
      FASTRNN_UNROLL
      for (int n = 0; n < kNumbers; ++n) own_numbers[n] = own ? given(n, first_unit + unit) : 0.0f;
      own_length = own ? static_cast<int>(a.rows.length(first_row + row)) : 0;
    } else {
      for (int n = 0; n < kNumbers; ++n) {
        for (int u = block.thread(); u < units; u += kThreads) numbers[n * tiling.units + u] = given(n, first_unit + u);
      }
      for (int r = block.thread(); r < rows; r += kThreads) {
        lengths[r] = static_cast<int>(a.rows.length(first_row + r));
      }
    }
  }

  // Calls `each(element)` for the units of `columns` rows from `from` on, divided among the threads.
  template <class Each>
  FASTRNN_DEVICE void each_unit(int from, int columns, const Each& each) const {
    if constexpr (kKnown) return each_ahead(each);
    Element e{row, unit, row, from == 0};
    while (e.column < columns) {
      e.row = from + e.column;
      each(e);
      e.ahead = false;
      e.column += row_step;
      e.unit += unit_step;
      if (e.unit >= units) {
        e.unit -= units;
        ++e.column;
      }
    }
  }
  // The same for the element whose values a thread reads ahead
  template <class Each>
  FASTRNN_DEVICE void each_ahead(const Each& each) const {
    constexpr bool kAll = kKnown && Sizes::kUnits * Sizes::kRows == kThreads;
    if (kAll || row < (kKnown ? Sizes::kRows : pass_columns(0))) each(Element{row, unit, row, true});
  }
  FASTRNN_DEVICE int pass_columns(int from) const { return rows - from < kPassColumns ? rows - from : kPassColumns; }
  // Rows of the passes; with known sizes there is one.
  FASTRNN_DEVICE int pass_rows() const { return kKnown ? 1 : rows; }
};

template <class Cell, class Format, template <class> class ThroughOf, class Given = AnySizes>
struct PersistentForward {
  using Args = ForwardArgs;
  using T = typename Format::Storage;
  using Through = ThroughOf<Format>;
  using U = Unit<Cell, T, int>;
  using V = typename U::V;
  using Row = typename U::Row;
  static constexpr int R = Cell::kRecurrent, S = Cell::kStates, Q = Cell::kParameters;
  using Sizes = SizesOf<Given, Format, R, 1>;
  using Mine = Share<Args, Format, Through, Sizes, S, R + Q>;

  static FASTRNN_FN int64_t shared_bytes(const Tiling& t) { return Mine::shared_bytes(t); }
  static constexpr int kWidest = U::kWidest, kDepthBlock = Format::kBlock;

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
    Mine mine(block, a);
    const OperandPart operand = mine.operand_part(1);
    const int H = U::hidden(a), steps = static_cast<int>(a.rows.steps);
    const T* w = static_cast<const T*>(a.w_hh);
    Format::pack(block, mine.matrix, mine.tiling.matrix_rows, static_cast<int>(mine.tiling.depth) / Format::kBlock,
                 MatrixRows<T, R>(w, H, mine.first_unit, mine.units));
    mine.load(block, [&](int n, int u) {
      if (n >= R) return static_cast<float>(get<T>(a.parameters, (n - R) * H + u));
      return a.b_hh != nullptr ? static_cast<float>(get<T>(a.b_hh, n * H + u)) : 0.0f;
    });
    Through through(block, a, operand, mine.exchange());
    mine.each_unit(0, mine.rows, [&](const Element& e) {
      const int b = mine.first_row + e.row, u = mine.first_unit + e.unit;
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) mine.state(s, e) = mine.owns(e) ? U::initial(a, s, b, u) : 0.0f;
      through.publish(e.row, 0, e.unit, mine.state(0, e));
    });
    through.send(block);
    const Product<Format, Sizes, typename Through::Load> product(block, mine.tiling, mine.matrix);
    for (int k = 0; k < steps; ++k) {
      Fetched fetched;
      Left left;
      mine.each_ahead([&](const Element& e) { fetch(a, mine, k, e, fetched); });
      through.wait(block);
      for (int from = 0; from < mine.pass_rows(); from += kPassColumns) {
        const int columns = mine.pass_columns(from);
        if (from > 0) block.sync();  // all threads have read the partial sums
        product.multiply(block, through.operand() + from * operand.stride, operand.stride, columns, mine.partials);
        block.sync();
        mine.each_unit(from, columns, [&](const Element& e) {
          const bool last = k + 1 == steps;
          if (e.ahead) {
            const float h = step(a, mine, k, e, fetched, left);
            if (!last) through.publish(e.row, 0, e.unit, h);
          } else {
            Fetched late;
            Left results;
            fetch(a, mine, k, e, late);
            const float h = step(a, mine, k, e, late, results);
            if (!last) through.publish(e.row, 0, e.unit, h);
            store(a, mine, k, e, results);
          }
        });
      }
      if (k + 1 < steps) through.send(block);
      mine.each_ahead([&](const Element& e) { store(a, mine, k, e, left); });
    }
  }

  static FASTRNN_DEVICE void fetch(const Args& a, const Mine& mine, int k, const Element& e, Fetched& out) {
    if (mine.active(k, e)) U::fetch(a, mine.row_of(k, e), mine.first_unit + e.unit, out.unit);
    out.anew = k + 1 < static_cast<int>(a.rows.steps) && mine.anew(k + 1, e);
  }

  // Runs the element's step and returns h as the next product reads it.
  static FASTRNN_DEVICE float step(const Args& a, Mine& mine, int k, const Element& e, const Fetched& fetched,
                                   Left& left) {
    V states[S];
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) states[s] = mine.state(s, e);
    left.active = mine.active(k, e);
    if (left.active) {
      typename U::Inputs in;
      U::load_input(fetched.unit, in);
      mine.partials.sums(e.unit * R, e.column, in.rh);
      FASTRNN_UNROLL
      for (int g = 0; g < R; ++g) in.rh[g] = in.rh[g] + V(mine.number(g, e));
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) in.parameters[q] = mine.number(R + q, e);
      U::forward(in, states, left.unit);
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) states[s] = left.unit.next[s];
    }
    const bool last = k + 1 == static_cast<int>(a.rows.steps);
    const int b = mine.first_row + e.row, u = mine.first_unit + e.unit;
    if ((last || fetched.anew) && mine.owns(e)) {
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) states[s] = U::conclude(a, s, last, fetched.anew, b, u, states[s].v);
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) mine.state(s, e) = states[s].v;
    return states[0].v;
  }

  static FASTRNN_DEVICE void store(const Args& a, const Mine& mine, int k, const Element& e, const Left& left) {
    const int u = mine.first_unit + e.unit;
    if (left.active) {
      const Row row = mine.row_of(k, e);
      U::put_output(a, row, u, left.unit.next[0].v);
      U::save(a, row, u, left.unit);
    } else if (mine.padded(e)) {
      U::put_output(a, mine.row_of(k, e), u, 0.0f);
    }
  }
};

template <class Cell, class Format, template <class> class ThroughOf, class Given = AnySizes>
struct PersistentBackward {
  using Args = BackwardArgs;
  using T = typename Format::Storage;
  using Through = ThroughOf<Format>;
  using U = Unit<Cell, T, int>;
  using V = typename U::V;
  using Row = typename U::Row;
  static constexpr int R = Cell::kRecurrent, S = Cell::kStates, Q = Cell::kParameters;
  using Sizes = SizesOf<Given, Format, 1, R>;
  using Mine = Share<Args, Format, Through, Sizes, S, Q>;

  static FASTRNN_FN int64_t shared_bytes(const Tiling& t) { return Mine::shared_bytes(t); }
  static constexpr int kWidest = U::kWidest, kDepthBlock = Format::kBlock;

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
    Mine mine(block, a);
    const OperandPart operand = mine.operand_part(R);
    const int H = U::hidden(a), steps = static_cast<int>(a.rows.steps);
    const T* w = static_cast<const T*>(a.w_hh);
    const bool initial = wants_initial(a);
    mine.observed = observes(a);
    Format::pack(block, mine.matrix, mine.tiling.matrix_rows, static_cast<int>(mine.tiling.depth) / Format::kBlock,
                 MatrixColumns<T>{w, R, operand.gate_numbers, H, mine.first_unit, mine.units});
    mine.load(block, [&](int n, int u) { return static_cast<float>(get<T>(a.parameters, n * H + u)); });
    Through through(block, a, operand, mine.exchange());
    begin(a, mine);
    block.sync();
    const Product<Format, Sizes, typename Through::Load> product(block, mine.tiling, mine.matrix);
    for (int undone = 0; undone <= steps; ++undone) {
      if (undone == steps && !initial) break;
      Fetched fetched;
      Left left;
      left.active = false;
      mine.each_ahead([&](const Element& e) { fetch(a, mine, undone, e, fetched); });
      if (undone > 0) through.wait(block);
      for (int from = 0; from < mine.pass_rows(); from += kPassColumns) {
        const int columns = mine.pass_columns(from);
        if (undone > 0) {
          if (from > 0) block.sync();
          product.multiply(block, through.operand() + from * operand.stride, operand.stride, columns, mine.partials);
          block.sync();
        }
        mine.each_unit(from, columns, [&](const Element& e) {
          const auto sum = [&] {
            V product[1];
            mine.partials.sums(e.unit, e.column, product);
            return product[0].v;
          };
          if (e.ahead) {
            step(a, mine, undone, e, fetched, left, sum);
            publish(a, through, undone, e, left);
          } else {
            Fetched late;
            Left results;
            fetch(a, mine, undone, e, late);
            step(a, mine, undone, e, late, results, sum);
            publish(a, through, undone, e, results);
            store(a, mine, undone, e, results);
          }
        });
      }
      if (undone + 1 < steps || (undone + 1 == steps && initial)) through.send(block);
      mine.each_ahead([&](const Element& e) { store(a, mine, undone, e, left); });
    }
  }

  // The gradients of the final states
  static FASTRNN_DEVICE void begin(const Args& a, Mine& mine) {
    mine.each_unit(0, mine.rows, [&](const Element& e) {
      const int b = mine.first_row + e.row, u = mine.first_unit + e.unit;
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) mine.state(s, e) = mine.owns(e) ? U::final_gradient(a, s, b, u) : 0.0f;
    });
  }
  static FASTRNN_DEVICE bool wants_initial(const Args& a) {
    for (int s = 0; s < S; ++s) {
      if (a.grad_initial[s] != nullptr) return true;
    }
    return false;
  }
  // Return true if gradients of states are stored for each step.
  static FASTRNN_DEVICE bool observes(const Args& a) {
    bool some = a.dh != nullptr;
    for (int s = 0; s < S; ++s) some = some || a.later[s] != nullptr;
    return some;
  }
  // Index of the step before the last `undone` ones
  static FASTRNN_DEVICE int place(const Args& a, int undone) { return static_cast<int>(a.rows.steps) - 1 - undone; }
  static FASTRNN_DEVICE void fetch(const Args& a, const Mine& mine, int undone, const Element& e, Fetched& out) {
    const int k = place(a, undone), u = mine.first_unit + e.unit;
    out.anew_after = undone > 0 && k >= 0 && mine.anew(k + 1, e);
    if (k < 0 || !mine.active(k, e)) return;
    const Row row = mine.row_of(k, e);
    const bool anew = k > 0 && mine.anew(k, e), continues = k > 0 && !anew && mine.active(k - 1, e);
    U::fetch(a, row, continues ? mine.row_of(k - 1, e) : row, continues, anew, u, out.unit);
    U::fetch_output(a, row, u, out.unit);
  }

  // Runs backward the element's step before the last `undone` ones; after all steps the gradients are those of the
  // initial states. `sum()`: the element of Rᵀ·∂L/∂rh of the step after it
  template <class Sum>
  static FASTRNN_DEVICE void step(const Args& a, Mine& mine, int undone, const Element& e, const Fetched& fetched,
                                  Left& left, const Sum& sum) {
    const int b = mine.first_row + e.row, u = mine.first_unit + e.unit, k = place(a, undone);
    V grads[S];
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) grads[s] = mine.state(s, e);
    if (undone > 0) {
      grads[0] = grads[0] + V(sum());
      if (fetched.anew_after) {
        FASTRNN_UNROLL
        for (int s = 0; s < S; ++s) grads[s] = U::divert(a, s, true, b, u, grads[s].v);
      }
    }
    left.active = k >= 0 && mine.active(k, e);
    if (k < 0) {
      if (!mine.owns(e)) return;
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) U::put_initial(a, s, b, u, grads[s].v);
      return;
    }
    const bool observed = mine.observed && (left.active || mine.padded(e));
    if (observed) {
      FASTRNN_UNROLL
      for (int s = 0; s < S; ++s) U::store_later(a, s, mine.row_of(k, e), left.active, u, grads[s].v);
    }
    typename U::Known known;
    if (left.active) {
      U::load_known(fetched.unit, known);
      FASTRNN_UNROLL
      for (int q = 0; q < Q; ++q) known.parameters[q] = mine.number(q, e);
      grads[0] = V(U::clipped(a, grads[0].v + widen(fetched.unit.grad_y)));
    }
    if (observed) U::put_hidden_gradient(a, mine.row_of(k, e), u, left.active ? grads[0].v : 0.0f);
    if (left.active) {
      U::backward(known, 0.0f, grads, left.unit);
    } else {
      FASTRNN_UNROLL
      for (int g = 0; g < R; ++g) left.unit.drh[g] = V::zero();
    }
    FASTRNN_UNROLL
    for (int s = 0; s < S; ++s) mine.state(s, e) = grads[s].v;
  }

  template <class Exchange>
  static FASTRNN_DEVICE void publish(const Args& a, const Exchange& through, int undone, const Element& e,
                                     const Left& left) {
    const int k = place(a, undone);
    if (k < 0 || (k == 0 && !wants_initial(a))) return;
    FASTRNN_UNROLL
    for (int g = 0; g < R; ++g) through.publish(e.row, g, e.unit, left.unit.drh[g].v);
  }

  static FASTRNN_DEVICE void store(const Args& a, const Mine& mine, int undone, const Element& e, const Left& left) {
    const int k = place(a, undone);
    if (k < 0) return;
    if (left.active) {
      U::put_gradients(a, mine.row_of(k, e), mine.first_unit + e.unit, left.unit);
    } else if (mine.padded(e)) {
      U::no_step(a, mine.row_of(k, e), mine.first_unit + e.unit);
    }
  }
};

}  // namespace fastrnn::cuda
