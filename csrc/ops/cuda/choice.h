// Which driver runs a call: the choice of cuda/plan.h, remembered, and what overrules it.
#pragma once

#include <array>
#include <string>

#include "cuda/plan.h"
#include "ops/cuda/device.h"

namespace fastrnn::cuda {

// Overrules the choice for all threads: auto, stepwise, grid or cluster. Raises ValueError for another name.
void set_driver(const std::string& name);
Driver wanted_driver();
// Into how many slices persistent drivers cut the units and the rows of the batch, for all threads; 0: by the rule of
// cuda/plan.cpp. For measurements and tests.
void set_slices(int units, int rows);

template <class Args>
Choice choice_of(const PersistentKernel<Args> (&kernels)[2], const Problem& problem, const at::Device& device,
                 Driver wanted);

// Launches a persistent driver that was chosen, or leaves it to the step-wise one and returns false: it was chosen
// itself, or the GPU refused the launch. Raises RuntimeError where a driver that was asked for by name cannot be had.
template <class Args>
bool run_persistent(const Call& call, Args args, const PersistentKernel<Args> (&kernels)[2], bool backward);

// Forgets what was chosen, as another machine is to be believed in (tests).
void forget_choices();
// The next launches of persistent drivers are refused, as on a GPU that is taken (tests).
void set_refusing(bool on);
// How many sequences ran by each driver, by Driver.
std::array<int64_t, 4> runs();
void count_run(Driver driver);

}  // namespace fastrnn::cuda
