// Backward in a cluster with known sizes. Instead of its gates' gradients, which all others would need, a block
// exchanges sums: it multiplies its columns of Rᵀ by its own gradients, for all units of the layer, and pushes each
// unit's part, in float32 and from the registers of the product, to the block that owns the unit. That one adds the
// parts of all blocks in a fixed order.
#pragma once

#include "cuda/persistent.h"

namespace fastrnn::cuda {

// Sizes of these products: each warp has some row tiles (16 units of the layer each) and the whole depth, the block's
// gates.
template <class Given, class Format, int gates>
struct PushedSizes {
  static constexpr int kUnits = Given::kUnits, kRows = Given::kRows, kHidden = Given::kHidden;
  static constexpr int kTiles = kHidden / kTileRows / kWarps, kOwnerTiles = kUnits / kTileRows;
  static constexpr int kOwners = kTiles / kOwnerTiles;  // blocks that a warp pushes to
  static constexpr int kSources = kHidden / kUnits;     // most blocks of a cluster
  static constexpr int kDepth = static_cast<int>(round_up(gates * kUnits, Format::kBlock));
  static constexpr int kBlocks = kDepth / Format::kBlock;
  static constexpr int kNumber = static_cast<int>(sizeof(typename Format::Storage));
  static constexpr int kStride =
      static_cast<int>(round_up(kDepth * kNumber - Format::kRowOffset, 128)) + Format::kRowOffset;
  static constexpr int kOperandBytes = kRows * kStride, kMatrixBytes = kHidden * kDepth * kNumber;
  static constexpr int kPartBytes = kUnits * kRows * 4;  // from one block to another
  static constexpr int kBarrier = 16, kSideBytes = kBarrier + kSources * kPartBytes;
  static constexpr int kSharedBytes = kMatrixBytes + 2 * kOperandBytes + 2 * kSideBytes;
  static_assert(kRows == kTileColumns && kUnits % kTileRows == 0 && kTiles % kOwnerTiles == 0);
  static_assert(kHidden % (kTileRows * kWarps) == 0 && kHidden % kUnits == 0);
};

// Rows: the units of the layer. Columns: the block's units, gate by gate
template <class T>
struct MatrixParts {
  const T* w;
  int gates, across, hidden, first_unit, units;

  FASTRNN_DEVICE Bits128 operator()(int row, int column) const {
    const int gate = column / across, unit = column % across;
    if (row >= hidden || gate >= gates || unit >= units) return {0, 0, 0, 0};
    return gather(w + (static_cast<int64_t>(gate) * hidden + first_unit + unit) * hidden + row, hidden, units - unit);
  }
};

// The block's own gradients, and the parts of sums from all blocks; two buffers of both in turn
template <class Format, class Sizes>
struct PushedExchange {
  using Storage = typename Format::Storage;
  static constexpr int kOwners = Sizes::kOwners;
  char *operands, *sides;  // [2, rows, stride]; twice a barrier and [source, part]
  int members, own;        // own: offset of this block's part in a side
  int written_operand, written_side;
  uint32_t waits;
  Peer receivers[kOwners];

  FASTRNN_DEVICE PushedExchange(Block& block, int members, char* shared)
      : operands(shared),
        sides(shared + 2 * Sizes::kOperandBytes),
        members(members),
        own(Sizes::kBarrier + block.rank() * Sizes::kPartBytes),
        written_operand(0),
        written_side(0),
        waits(0) {
    // The padding of the depth and the parts of blocks that are not there are zero.
    for (int n = block.thread(); n < (2 * Sizes::kOperandBytes + 2 * Sizes::kSideBytes) / 16; n += kThreads) {
      reinterpret_cast<Bits128*>(operands)[n] = {0, 0, 0, 0};
    }
    FASTRNN_UNROLL
    for (int n = 0; n < kOwners; ++n) receivers[n] = peer(block, owner(block, n) < members ? owner(block, n) : 0);
    block.sync();
    if (block.thread() == 0) {
      for (int n = 0; n < 2; ++n) start(barrier(n * Sizes::kSideBytes));
      for (int n = 0; n < 2; ++n) expect(barrier(n * Sizes::kSideBytes), awaited());
    }
    block.cluster_arrive();
    block.cluster_wait();
  }
  static FASTRNN_DEVICE int owner(Block& block, int n) { return block.thread() / 32 * kOwners + n; }
  FASTRNN_DEVICE PushBarrier* barrier(int at) const { return reinterpret_cast<PushBarrier*>(sides + at); }
  FASTRNN_DEVICE uint32_t awaited() const { return static_cast<uint32_t>(members * Sizes::kPartBytes); }

  FASTRNN_DEVICE void publish(int row, int gate, int unit, float value) const {
    char* to = operands + (row * Sizes::kStride + (gate * Sizes::kUnits + unit) * Sizes::kNumber);
    Format::operand(value, reinterpret_cast<Storage*>(to + written_operand));
  }
  FASTRNN_DEVICE const char* operand() const { return operands + written_operand; }

  // Pushes the sums of the m-th row tile of a warp: a thread's are those of two units (8 apart) and two rows. The order
  // of the 16 bytes, and of the rows in every other tile, lets a warp read its units' sums without bank conflicts.
  FASTRNN_DEVICE void push_tile(Block& block, int m, const float (&sums)[4]) const {
    const int lane = block.thread() % 32, tile = m % Sizes::kOwnerTiles, n = m / Sizes::kOwnerTiles;
    if (owner(block, n) >= members) return;
    const int place = lane % 4 * 8 * Sizes::kOwnerTiles + tile * 8 + lane / 4;
    const int first = tile % 2, second = 1 - first;
    const Bits128 bits = {bit_cast<uint32_t>(sums[first]), bit_cast<uint32_t>(sums[second]),
                          bit_cast<uint32_t>(sums[2 + first]), bit_cast<uint32_t>(sums[2 + second])};
    Bits128* mine = reinterpret_cast<Bits128*>(sides + own + 16 * place + written_side);
    push(block, mine, bits, barrier(written_side), receivers[n]);
  }
  FASTRNN_DEVICE void turn() {
    written_operand = Sizes::kOperandBytes - written_operand;
    written_side = Sizes::kSideBytes - written_side;
  }
  // As in ThroughCluster; a block also awaits its own part.
  FASTRNN_DEVICE void wait(Block& block) {
    PushBarrier* arrived = barrier(Sizes::kSideBytes - written_side);
    await(block, arrived, waits++ >> 1 & 1);
    if (block.thread() == 0) expect(arrived, awaited());
  }
  // Sum of all blocks' parts: first those of every fourth block, which do not wait for each other
  FASTRNN_DEVICE float sum(int row, int unit) const {
    const int tile = unit / kTileRows, half = unit % kTileRows / 8;
    const int place = row / 2 * 8 * Sizes::kOwnerTiles + tile * 8 + unit % 8;
    const int number = place * 4 + half * 2 + (row % 2 ^ tile % 2);
    const char* from = sides + (Sizes::kSideBytes - written_side) + Sizes::kBarrier + number * 4;
    float sums[4] = {0, 0, 0, 0};
    FASTRNN_UNROLL
    for (int source = 0; source < Sizes::kSources; ++source) {
      const float part = *reinterpret_cast<const float*>(from + source * Sizes::kPartBytes);
      sums[source % 4] = source < 4 ? part : sums[source % 4] + part;
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};

template <class Cell, class Format, class Given>
struct PersistentPushedBackward : PersistentBackward<Cell, Format, ThroughCluster, Given> {
  using Base = PersistentBackward<Cell, Format, ThroughCluster, Given>;
  using typename Base::Args;
  using typename Base::Fetched;
  using typename Base::Left;
  using typename Base::Mine;
  using typename Base::T;
  static constexpr int R = Base::R;
  using Pushed = PushedSizes<Given, Format, R>;
  using Held = typename Format::template Held<Pushed::kBlocks, Pushed::kTiles>;
  using Exchange = PushedExchange<Format, Pushed>;

  static FASTRNN_FN int64_t shared_bytes(const Tiling&) { return Pushed::kSharedBytes; }

  static FASTRNN_DEVICE void run(Block& block, const Args& a) {
    Mine mine(block, a);
    const int H = Base::U::hidden(a), steps = static_cast<int>(a.rows.steps);
    const bool initial = Base::wants_initial(a);
    mine.observed = Base::observes(a);
    Format::pack(block, mine.matrix, Pushed::kHidden, Pushed::kBlocks,
                 MatrixParts<T>{static_cast<const T*>(a.w_hh), R, Pushed::kUnits, H, mine.first_unit, mine.units});
    mine.load(block, [&](int n, int u) { return static_cast<float>(get<T>(a.parameters, n * H + u)); });
    Exchange exchange(block, a.tiling.unit_slices, mine.matrix + Pushed::kMatrixBytes);
    Base::begin(a, mine);
    const Held held(block, {mine.matrix, Pushed::kHidden, block.thread() / 32 * Pushed::kTiles}, 0);
    for (int undone = 0; undone <= steps; ++undone) {
      if (undone == steps && !initial) break;
      Fetched fetched;
      Left left;
      left.active = false;
      mine.each_ahead([&](const Element& e) { Base::fetch(a, mine, undone, e, fetched); });
      if (undone > 0) exchange.wait(block);
      mine.each_ahead([&](const Element& e) {
        Base::step(a, mine, undone, e, fetched, left, [&] { return exchange.sum(e.row, e.unit); });
        Base::publish(a, exchange, undone, e, left);
      });
      if (undone + 1 < steps || (undone + 1 == steps && initial)) multiply(block, held, exchange);
      mine.each_ahead([&](const Element& e) { Base::store(a, mine, undone, e, left); });
    }
  }

  // A warp may be a step behind the others of its block: it still reads the operand before the one that they write.
  static FASTRNN_DEVICE void multiply(Block& block, const Held& held, Exchange& exchange) {
    block.sync();
    typename Format::template Operand<1> right[Pushed::kBlocks];
    float sums[Pushed::kTiles][4] = {};
    FASTRNN_UNROLL
    for (int k = 0; k < Pushed::kBlocks; ++k) {
      Format::template fetch<1>(block, right[k], exchange.operand(), Pushed::kStride, k,
                                typename Base::Through::Load());
    }
    FASTRNN_UNROLL
    for (int k = 0; k < Pushed::kBlocks; ++k) Format::accumulate(block, sums, held, k, right[k][0]);
    FASTRNN_UNROLL
    for (int m = 0; m < Pushed::kTiles; ++m) exchange.push_tile(block, m, sums[m]);
    exchange.turn();
  }
};

}  // namespace fastrnn::cuda
