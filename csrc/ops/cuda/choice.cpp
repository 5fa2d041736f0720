#include "ops/cuda/choice.h"

#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <map>
#include <mutex>
#include <tuple>

#include "ops/cuda/errors.h"
#include "ops/cuda/machine.h"

namespace fastrnn::cuda {

namespace {

std::atomic<Driver> override{Driver::kAuto};
std::atomic<bool> refusing{false};
std::array<std::atomic<int64_t>, 4> ran{};
struct Slices {
  int units, rows;
};
std::atomic<Slices> asked_slices{Slices{0, 0}};

// The kernels, device, T, B, H, projection, driver and slices. Querying how many blocks fit on the GPU takes longer
// than a launch, so answers are cached; a program with more than kMost shapes clears the cache.
using Key = std::tuple<const void*, c10::DeviceIndex, int64_t, int64_t, int64_t, bool, Driver, int, int>;
constexpr size_t kMost = 4096;
std::mutex choices_mutex;
std::map<Key, Choice> choices;

// The memory for exchange between the blocks of a grid: counters, then buffers. Allocated for each call, so that calls
// on two streams do not share it.
template <class Args>
Tensor exchange(Args& args, const PersistentKernel<Args>& kernel, const at::TensorOptions& options) {
  const Tiling& t = args.tiling;
  const auto up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
  const int64_t counters = up(t.row_slices * static_cast<int64_t>(sizeof(uint32_t)), 256);
  const int64_t buffer = up(t.rows, kTileColumns) * t.depth * kernel.operand_bytes;
  Tensor memory = at::zeros({counters + 2 * t.row_slices * buffer}, options.dtype(at::kByte));
  char* start = static_cast<char*>(memory.mutable_data_ptr());
  args.exchange.counters = reinterpret_cast<uint32_t*>(start);
  args.exchange.buffers = start + counters;
  return memory;
}

template <class Args>
Error launch(const PersistentKernel<Args>& kernel, const Args& args, c10::DeviceIndex device) {
  if (refusing) return a_refusal();
  return kernel.launch(args, c10::cuda::getCurrentCUDAStream(device).stream());
}

void refuse(Driver wanted, const std::string& reason) {
  TORCH_CHECK(wanted == Driver::kAuto, "fastrnn: expected a call that the driver \"", driver_name(wanted),
              "\" can run, as it was asked for, but it cannot: ", reason);
}

}  // namespace

void set_driver(const std::string& name) {
  Driver driver;
  TORCH_CHECK_VALUE(driver_named(name, &driver), "driver: expected auto, stepwise, grid or cluster, got ", name);
  override = driver;
}

void set_slices(int units, int rows) {
  TORCH_CHECK_VALUE(units >= 0 && rows >= 0, "slices: expected no negative number, got ", units, " and ", rows);
  asked_slices = Slices{units, rows};
}

Driver wanted_driver() { return override; }

template <class Args>
Choice choice_of(const PersistentKernel<Args> (&kernels)[2], const Problem& problem, const at::Device& device,
                 Driver wanted) {
  const Slices slices = asked_slices;
  const Key key{kernels, device.index(), problem.steps, problem.batch, problem.hidden, problem.projection,
                wanted,  slices.units,   slices.rows};
  {
    const std::lock_guard lock(choices_mutex);
    const auto found = choices.find(key);
    if (found != choices.end()) return found->second;
  }
  Problem asked = problem;
  asked.unit_slices = slices.units;
  asked.row_slices = slices.rows;
  Choice choice = choose(kernels, asked, machine(device.index()), wanted);
  forget_error();  // of a query that failed
  const std::lock_guard lock(choices_mutex);
  if (choices.size() >= kMost) choices.clear();
  choices.emplace(key, choice);
  return choice;
}

template <class Args>
bool run_persistent(const Call& call, Args args, const PersistentKernel<Args> (&kernels)[2], bool backward) {
  const Driver wanted = wanted_driver();
  const CudaLayout& layout = call.layout;
  const CellKernels& cell = *call.cell;
  const Problem problem{layout.steps, layout.batch, call.hidden,     cell.recurrent,
                        cell.second,  cell.states,  call.projection, backward};
  const Choice choice = choice_of(kernels, problem, call.device, wanted);
  if (!choice.possible) refuse(wanted, choice.reason);
  if (!choice.possible || choice.driver == Driver::kStepwise) return false;
  const PersistentKernel<Args>& kernel = kernels[choice.driver == Driver::kCluster];
  args.tiling = choice.tiling;
  const Tensor memory = choice.tiling.cluster ? Tensor() : exchange(args, kernel, call.options);
  const Error error = launch(kernel, args, call.device.index());
  if (error != 0 && is_refusal(error)) {
    forget_error();
    refuse(wanted, error_text(error));
    return false;
  }
  check(error, driver_name(choice.driver));
  count_run(choice.driver);
  return true;
}

void forget_choices() {
  const std::lock_guard lock(choices_mutex);
  choices.clear();
}

void set_refusing(bool on) { refusing = on; }

std::array<int64_t, 4> runs() {
  std::array<int64_t, 4> out{};
  for (size_t k = 0; k < out.size(); ++k) out[k] = ran[k];
  return out;
}

void count_run(Driver driver) { ++ran[static_cast<size_t>(driver)]; }

template Choice choice_of(const PersistentKernel<ForwardArgs> (&)[2], const Problem&, const at::Device&, Driver);
template Choice choice_of(const PersistentKernel<BackwardArgs> (&)[2], const Problem&, const at::Device&, Driver);
template bool run_persistent(const Call&, ForwardArgs, const PersistentKernel<ForwardArgs> (&)[2], bool);
template bool run_persistent(const Call&, BackwardArgs, const PersistentKernel<BackwardArgs> (&)[2], bool);

}  // namespace fastrnn::cuda
