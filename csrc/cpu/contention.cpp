#include "cpu/contention.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace fastrnn {

namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kLate = kMillisecond / 2;  // a sleeping thread with a free core starts within a tenth of that
constexpr int64_t kShortest = 50 * kMillisecond, kLongest = 800 * kMillisecond;
constexpr double kLongJob = 60e-3;  // seconds: several regions of several time slices

constexpr int64_t kFewSlices = 20 * kMillisecond;

std::atomic<int64_t> alone_until{0}, last_while{0}, last_wait{0};

}  // namespace

int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void report_contention() {
  const int64_t now = nanoseconds(), until = alone_until.load();
  if (now < until) return;  // several signs of the same event count once
  // Soon after the last period: using threads again has failed.
  const bool again = now - until < 2 * last_while.load();
  const int64_t length = again ? std::min(kLongest, 2 * last_while.load()) : kShortest;
  last_while = length;
  alone_until = now + length;
}

bool long_wait_again() {
  const int64_t now = nanoseconds();
  return now - last_wait.exchange(now) < kFewSlices;
}

bool better_alone(double seconds) { return seconds < kLongJob && nanoseconds() < alone_until.load(); }

void set_contention(bool seen) {
  last_while = last_wait = 0;
  alone_until = seen ? nanoseconds() + 3600 * 1000 * kMillisecond : 0;
}

Watch::Watch() : begin_(nanoseconds()) {}

void Watch::arrived() const {
  if (nanoseconds() - begin_ > kLate) report_contention();
}

}  // namespace fastrnn
