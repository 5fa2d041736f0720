// Stages of a persistent driver's step that a kernel can be compiled without, so that what each costs can be measured
// (benchmarks/gpu_tune.py). Such a kernel computes nothing of use. A cell says so by a constant of its own,
//   struct lstm_without_product : lstm { static constexpr unsigned kLeaveOut = 2; };
// and without one, as all cells of csrc/cells are, none of this leaves a trace.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "cuda/device.h"

namespace fastrnn::cuda {

enum Stage : unsigned {
  kExchangeStage = 1,  // the operand through memory: writing it, and (grid) reading it
  kProductStage = 2,
  kUnitStage = 4,  // the cell
  kWaitStage = 8,  // for the group's other blocks
};

template <class Cell, class = void>
inline constexpr unsigned kLeftOut = 0;
template <class Cell>
inline constexpr unsigned kLeftOut<Cell, std::void_t<decltype(Cell::kLeaveOut)>> = Cell::kLeaveOut;

template <class Cell, class Through>
struct Stages {
  static constexpr bool has(Stage stage) { return (kLeftOut<Cell> & stage) == 0; }

  struct NoLoad {
    static constexpr int kInFlight = Through::Load::kInFlight;
    FASTRNN_DEVICE Bits128 operator()(const char* p) const {
      const auto number = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p));
      return {number, number, number, number};
    }
  };
  using Load = std::conditional_t<has(kExchangeStage) || Through::kCluster, typename Through::Load, NoLoad>;

  template <class Format>
  static FASTRNN_DEVICE void publish(Through& through, Block& block, int64_t k, int64_t at, float value) {
    if constexpr (has(kExchangeStage)) through.template publish<Format>(block, k, at, value);
  }
  static FASTRNN_DEVICE void arrive(Through& through, Block& block) {
    if constexpr (has(kWaitStage)) {
      through.arrive(block);
    } else {
      block.sync();
    }
  }
  static FASTRNN_DEVICE void wait(Through& through, Block& block) {
    if constexpr (has(kWaitStage)) {
      through.wait(block);
    } else {
      block.sync();
    }
  }
  // After the last step: blocks that have not waited must not leave while others write into their memory.
  static FASTRNN_DEVICE void end(Through& through, Block& block) {
    if constexpr (!has(kWaitStage) && Through::kCluster) {
      through.arrive(block);
      through.wait(block);
    }
  }
};

}  // namespace fastrnn::cuda
