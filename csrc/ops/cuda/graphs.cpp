#include "ops/cuda/graphs.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda/drivers.h"
#include "cuda/layout.h"
#include "ops/cuda/errors.h"

namespace fastrnn::cuda {

namespace {

constexpr size_t kMostGraphs = 32;

bool wanted_at_start() {
  const char* text = std::getenv("FASTRNN_CUDA_GRAPHS");
  return text == nullptr || std::string(text) != "0";
}

std::atomic<bool> enabled{wanted_at_start()};
std::atomic<int64_t> captured{0}, launched{0};

// What the fixed arguments of a graph's nodes follow from.
struct Key {
  const void* kernels;
  c10::DeviceIndex device;
  c10::StreamId stream;
  int64_t batch, hidden, projected;
  const void *first, *second;
  bool backward;

  bool operator==(const Key&) const = default;
};

template <class Args>
Error graph_step(const Call& call, const Args& args, const Args* device, const Position& position, Library& library,
                 Stream stream) {
  if constexpr (std::is_same_v<Args, ForwardArgs>) {
    return forward_step(*call.kernels, args, device, position, call.layout.batch, library, stream);
  } else {
    return backward_step(*call.kernels, args, device, position, call.layout.batch, library, stream);
  }
}

// Whether the matrices lie in another place at every call: where a cell has numbers of each unit, they are put together
// with those before it. A graph then has a copy of its own; kept itself, the caller's would never be in the same place.
bool matrices_move(const Call& call) { return call.cell->parameters > 0; }

// One graph with its memory. All of it is used on one stream only, and under the mutex.
template <class Args>
class StepGraph {
 public:
  StepGraph(const Call& call, const Tensor& first, const OptionalTensor& second)
      : copies_(matrices_move(call)),
        first_(copies_ ? first.clone() : first),
        second_(copies_ && second ? OptionalTensor(second->clone()) : second),
        workspace_(call, std::is_same_v<Args, BackwardArgs>, first_, second_),
        device_args_(at::empty({static_cast<int64_t>(sizeof(Args))}, call.options.dtype(at::kByte))),
        counter_(at::zeros({1}, call.options.dtype(at::kLong))) {}

  StepMemory memory() const { return workspace_.pointers(); }

  // On a stream of its own, as the default stream cannot be captured; nothing runs.
  void capture(const Call& call, const Args& args) {
    const auto side = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, call.device.index());
    const c10::cuda::CUDAStreamGuard guard(side);
    graph_.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    Error error = 0;
    try {
      for (int64_t k = 0; k < kGraphSteps && error == 0; ++k) {
        error = graph_step(call, args, device_args(), {k, counter()}, workspace_.library, side.stream());
      }
      if (error == 0) error = advance(counter(), kGraphSteps, side.stream());
    } catch (...) {
      abandon();
      throw;
    }
    graph_.capture_end();
    check(error, "capturing a graph of steps");
    ++captured;
  }

  // Returns how many steps are done.
  int64_t run(const Args& args, const Tensor& first, const OptionalTensor& second, Stream stream) {
    if (copies_) {
      first_.copy_(first);
      if (second_) second_->copy_(*second);
    }
    check(write_words(&args, sizeof(Args), device_args(), stream), "a graph of steps");
    counter_.zero_();
    const int64_t times = args.rows.steps / kGraphSteps;
    for (int64_t n = 0; n < times; ++n) graph_.replay();
    ++launched;
    return times * kGraphSteps;
  }

  Library& library() { return workspace_.library; }

 private:
  Args* device_args() { return reinterpret_cast<Args*>(device_args_.mutable_data_ptr()); }
  int64_t* counter() { return counter_.mutable_data_ptr<int64_t>(); }
  // A capture that failed half-way must be ended before the stream can be used again.
  void abandon() noexcept {
    try {
      graph_.capture_end();
    } catch (...) {
      forget_error();
    }
  }

  const bool copies_;
  Tensor first_;
  OptionalTensor second_;
  Workspace workspace_;
  Tensor device_args_, counter_;
  at::cuda::CUDAGraph graph_;
};

template <class Args>
struct Entry {
  Key key;
  bool failed = false;
  std::unique_ptr<StepGraph<Args>> graph;  // null: seen once
};

// Most recently used first.
template <class Args>
std::list<Entry<Args>>& entries() {
  static auto* list = new std::list<Entry<Args>>();  // never destroyed: CUDA may be gone by then
  return *list;
}
std::mutex mutex;

// The entry of that key, in front; a new one if there is none.
template <class Args>
Entry<Args>& entry_of(const Key& key, bool* seen) {
  auto& list = entries<Args>();
  for (auto at = list.begin(); at != list.end(); ++at) {
    if (at->key == key) {
      list.splice(list.begin(), list, at);
      *seen = true;
      return list.front();
    }
  }
  *seen = false;
  list.push_front(Entry<Args>{key, false, nullptr});
  if (list.size() > kMostGraphs) list.pop_back();
  return list.front();
}

template <class Args>
Error finish(const Call& call, const Args& args, int64_t done, Library& library, Stream stream) {
  Error error = 0;
  for (int64_t k = done; k < args.rows.steps && error == 0; ++k) {
    error = graph_step<Args>(call, args, nullptr, {k, nullptr}, library, stream);
  }
  if constexpr (std::is_same_v<Args, BackwardArgs>) {
    if (error == 0 && wants_initial(args)) error = call.kernels->initial.launch(args, {}, stream);
  }
  return error;
}

bool possible(const Call& call, c10::cuda::CUDAStream stream) {
  return enabled && call.cell->recurrent > 0 && call.layout.counts.empty() && call.layout.steps >= 2 * kGraphSteps &&
         !c10::cuda::isStreamCapturingMayInitCtx(stream.stream());
}

template <class Args>
bool run_any(const Call& call, Args args, const Tensor& first, const OptionalTensor& second) {
  const auto stream = c10::cuda::getCurrentCUDAStream(call.device.index());
  if (!possible(call, stream)) return false;
  constexpr bool kBackward = std::is_same_v<Args, BackwardArgs>;
  const bool moving = matrices_move(call);
  const Key key{call.kernels,
                call.device.index(),
                stream.id(),
                call.layout.batch,
                call.hidden,
                call.projected,
                moving ? nullptr : data_of(first),
                moving   ? nullptr
                : second ? data_of(*second)
                         : nullptr,
                kBackward};
  // Until all is launched: what another thread launched on this stream in between would find this call's memory.
  const std::lock_guard lock(mutex);
  bool seen = false;
  Entry<Args>& entry = entry_of<Args>(key, &seen);
  if (!seen || entry.failed) return false;
  if (entry.graph == nullptr) {
    auto graph = std::make_unique<StepGraph<Args>>(call, first, second);
    args.memory = graph->memory();
    try {
      graph->capture(call, args);
    } catch (const c10::Error&) {
      forget_error();
      entry.failed = true;  // the single launches will say what is wrong, if it concerns them too
      return false;
    }
    entry.graph = std::move(graph);
  }
  args.memory = entry.graph->memory();
  if constexpr (kBackward) {
    check(call.kernels->begin_backward.launch(args, {}, stream.stream()), "a graph of steps");
  } else {
    check(call.kernels->begin.launch(args, {}, stream.stream()), "a graph of steps");
  }
  const int64_t done = entry.graph->run(args, first, second, stream.stream());
  check(finish(call, args, done, entry.graph->library(), stream.stream()), "steps after a graph");
  return true;
}

}  // namespace

bool run_graphs(const Call& call, ForwardArgs args, const Tensor& first, const OptionalTensor& second) {
  return run_any(call, args, first, second);
}
bool run_graphs(const Call& call, BackwardArgs args, const Tensor& first, const OptionalTensor& second) {
  return run_any(call, args, first, second);
}

void set_graphs(bool on) { enabled = on; }

std::pair<int64_t, int64_t> graph_counts() { return {captured, launched}; }

void forget_graphs() {
  const std::lock_guard lock(mutex);
  entries<ForwardArgs>().clear();
  entries<BackwardArgs>().clear();
}

}  // namespace fastrnn::cuda
