// A problem for the kernels, the ways to run it in any dtype, and its results. Without torch, and of csrc/ only the
// plain data of cpu/args.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/args.h"

// gcc reports the sanitizer with a macro, clang with a query that gcc may not know.
#if defined(__SANITIZE_ADDRESS__)
#define FASTRNN_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#define FASTRNN_ADDRESS_SANITIZER __has_feature(address_sanitizer)
#else
#define FASTRNN_ADDRESS_SANITIZER 0
#endif

namespace check {

using namespace fastrnn;
using Values = std::vector<double>;

inline size_t index(int64_t k) { return static_cast<size_t>(k); }

inline constexpr const char* kFormatNames[] = {
    "float32", "float64", "bfloat16", "float16", "float32 in two parts", "float32 in one part"};
inline Format stored_as(Format f) {
  return f == Format::kFloat32TwoParts || f == Format::kFloat32OnePart ? Format::kFloat32 : f;
}
inline int bytes_of(Format f) { return f == Format::kFloat64 ? 8 : stored_as(f) == Format::kFloat32 ? 4 : 2; }
inline Format computed_in(Format f) { return f == Format::kFloat64 ? f : Format::kFloat32; }
// Half the distance from 1 to the next number: the largest relative error of one rounding.
inline double roundoff(Format f) {
  constexpr int kBits[] = {24, 53, 8, 11, 24};
  return ldexp(1.0, -kBits[static_cast<int>(f)]);
}

// Conversions of the 16-bit dtypes from their definition, so that the kernels' own conversions are tested and not used.
inline double decode_half(uint16_t bits, int mantissa, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  double value = exponent == 0 ? ldexp(fraction, 1 - bias - mantissa)
                               : ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
  if (exponent == 0x7fff >> mantissa) value = fraction == 0 ? HUGE_VAL : NAN;
  return bits & 0x8000 ? -value : value;
}
// Encodes a number that the dtype represents exactly and as a normal number.
inline uint16_t encode_half(double x, int mantissa, int bias) {
  if (x == 0) return 0;
  int exponent;
  const double fraction = 2 * frexp(fabs(x), &exponent) - 1;
  const int magnitude = ((exponent - 1 + bias) << mantissa) + static_cast<int>(ldexp(fraction, mantissa));
  return static_cast<uint16_t>(magnitude | (x < 0 ? 0x8000 : 0));
}

// An array in one dtype. Its address is a multiple of the element size only. It ends at the end of its memory where a
// sanitizer checks accesses, and lies between sentinels elsewhere. It holds NaN until written.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Format format, int64_t count)
      : format_(format),
        count_(count),
        front_(64 + static_cast<size_t>(bytes_of(format))),
        size_(static_cast<size_t>(count) * static_cast<size_t>(bytes_of(format))),
        memory_(new unsigned char[front_ + size_ + kFence]) {
    memset(memory_.get(), kSentinel, front_ + size_ + kFence);
    memset(data(), 0xff, size_);
  }
  Buffer(Format format, const Values& values) : Buffer(format, static_cast<int64_t>(values.size())) {
    for (int64_t k = 0; k < count_; ++k) put(k, values[static_cast<size_t>(k)]);
  }
  void* data() const { return memory_ ? memory_.get() + front_ : nullptr; }
  bool empty() const { return memory_ == nullptr; }

  Values values() const {
    Values all(static_cast<size_t>(count_));
    for (int64_t k = 0; k < count_; ++k) all[static_cast<size_t>(k)] = get(k);
    return all;
  }
  bool intact() const {
    for (size_t k = 0; memory_ && k < front_ + kFence; ++k) {
      if (memory_[k < front_ ? k : k + size_] != kSentinel) return false;
    }
    return true;
  }
  bool same_bits(const Buffer& other) const {
    return size_ == other.size_ && (size_ == 0 || memcmp(data(), other.data(), size_) == 0);
  }

 private:
#if FASTRNN_ADDRESS_SANITIZER
  static constexpr size_t kFence = 0;
#else
  static constexpr size_t kFence = 64;
#endif
  static constexpr unsigned char kSentinel = 0xa5;

  unsigned char* at(int64_t k) const { return static_cast<unsigned char*>(data()) + k * bytes_of(format_); }
  void put(int64_t k, double x) {
    if (format_ == Format::kFloat64) {
      memcpy(at(k), &x, 8);
    } else if (stored_as(format_) == Format::kFloat32) {
      const auto narrow = static_cast<float>(x);
      memcpy(at(k), &narrow, 4);
    } else {
      const uint16_t bits = format_ == Format::kBFloat16 ? encode_half(x, 7, 127) : encode_half(x, 10, 15);
      memcpy(at(k), &bits, 2);
    }
  }
  double get(int64_t k) const {
    double wide;
    float single;
    uint16_t bits;
    if (format_ == Format::kFloat64) return memcpy(&wide, at(k), 8), wide;
    if (stored_as(format_) == Format::kFloat32) return memcpy(&single, at(k), 4), static_cast<double>(single);
    memcpy(&bits, at(k), 2);
    return format_ == Format::kBFloat16 ? decode_half(bits, 7, 127) : decode_half(bits, 10, 15);
  }

  Format format_ = Format::kFloat64;
  int64_t count_ = 0;
  size_t front_ = 0, size_ = 0;
  std::unique_ptr<unsigned char[]> memory_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t below(uint64_t n) {  // Knuth's multiplier for 64 bits; its high bits are the good ones
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % n;
  }
  // Draws numbers k/64 with least ≤ |k| < most, of either sign, times `scale`.
  Values values(int64_t count, uint64_t least, uint64_t most, double scale = 1) {
    Values all(static_cast<size_t>(count));
    for (double& x : all) {
      x = scale * static_cast<double>(least + below(most - least)) / 64;
      if (below(2) != 0) x = -x;
    }
    return all;
  }

 private:
  uint64_t state_;
};

struct Case {
  std::string cell;
  const CellKernels* kernels;
  int64_t T, B, H, P;
  bool projecting, ragged, resets, reverse;
};

// All dtypes represent every number exactly, so they get the same problem. No number is near a kink, so that gradients
// of relu can be compared too: |W·x| lies in [0.75, 1.75), biases are below 1/32 and rows of |R| sum to
// less than 1/4 (of |w_hr| to less than 1), hence |h| < 2.43 and |R·h| + biases < 0.68.
struct Problem : Case {
  std::vector<int64_t> counts, offsets;
  std::vector<uint8_t> reset;
  int64_t N = 0;
  Values wx, w_hh, b_ih, b_hh, w_hr, initial[kMaxStates], grad_y, grad_final[kMaxStates];  // empty: null
  bool own_restart = false;  // segments start from `restart`, else from `initial`
  Values restart[kMaxStates];

  Problem(const Case& c, uint64_t seed) : Case(c) {
    Random random(seed);
    lay_out(random);
    const int64_t G = kernels->gates;
    wx = random.values(N * G * H, 48, 112);
    w_hh = random.values(G * H * P, 0, 64, power_of_two_below(4 * P));
    if (random.below(2) != 0) b_ih = random.values(G * H, 0, 64, 1.0 / 32);
    if (random.below(2) != 0) b_hh = random.values(G * H, 0, 64, 1.0 / 32);
    if (projecting) w_hr = random.values(P * H, 0, 64, power_of_two_below(H));
    const bool with_initial = random.below(3) != 0;
    for (int s = 0; s < kernels->states; ++s) {
      if (with_initial) initial[s] = random.values(B * width(s), 0, 64);
      grad_final[s] = random.values(B * width(s), 0, 64);
    }
    grad_y = random.values(N * P, 0, 64);
    own_restart = resets && random.below(2) != 0;
    for (int s = 0; own_restart && s < kernels->states; ++s) restart[s] = random.values(B * width(s), 0, 64);
  }

  int64_t width(int s) const { return s == 0 ? P : H; }
  const Values* segment_start() const { return own_restart ? restart : initial; }
  static double power_of_two_below(int64_t n) {
    return ldexp(1.0, -static_cast<int>(ceil(log2(static_cast<double>(n)))));
  }
  int64_t length(int64_t b) const {
    int64_t n = 0;
    while (n < T && counts[static_cast<size_t>(n)] > b) ++n;
    return n;
  }
  std::string describe() const {
    const auto n = [](int64_t x) { return std::to_string(x); };
    std::string text = cell + " T=" + n(T) + " B=" + n(B) + " H=" + n(H);
    if (projecting) text += " P=" + n(P);
    for (size_t t = 0; ragged && t < counts.size(); ++t) text += (t == 0 ? " counts=" : ",") + n(counts[t]);
    return text + (resets ? " resets" : "") + (own_restart ? " restart" : "") + (reverse ? " reverse" : "") +
           (b_ih.empty() ? "" : " b_ih") + (b_hh.empty() ? "" : " b_hh") + (initial[0].empty() ? "" : " initial");
  }

 private:
  void lay_out(Random& random) {
    int64_t count = B;
    for (int64_t t = 0; t < T; ++t) {
      if (ragged) count = static_cast<int64_t>(random.below(static_cast<uint64_t>(count) + 1));
      if (ragged && t == 0 && random.below(2) != 0) count = B;
      counts.push_back(count);
      offsets.push_back(N);
      N += count;
    }
    if (!resets) return;
    for (int64_t k = 0; k < N; ++k) reset.push_back(random.below(3) == 0);
  }
};

// The way to run a problem.
struct Way {
  Format format = Format::kFloat64;
  Split split = Split::kNone;
  int threads = 1;
  bool training = true, product = true;  // product: BackwardArgs::initial_product
  const Values* rh = nullptr;            // ForwardArgs::rh

  std::string describe() const {
    constexpr const char* kSplits[] = {"auto", "none", "rows", "units"};
    return std::string(kFormatNames[static_cast<int>(format)]) + " split=" + kSplits[static_cast<int>(split)] +
           " threads=" + std::to_string(threads);
  }
};

// All outputs of the kernels, by name.
struct Outputs {
  std::vector<std::pair<std::string, Buffer>> all;
  int code = 0;

  void* add(const std::string& name, Buffer buffer) {
    all.emplace_back(name, std::move(buffer));
    return all.back().second.data();
  }
  const Buffer& operator[](const std::string& name) const {
    static const Buffer none;
    for (const auto& [known, buffer] : all) {
      if (known == name) return buffer;
    }
    return none;
  }
};

inline Sequence sequence_of(const Problem& p, const Way& way) {
  return {p.T,       p.B,         p.H,      p.P, p.counts.data(), p.offsets.data(), p.resets ? p.reset.data() : nullptr,
          p.reverse, way.threads, way.split};
}

// The inputs of one call, which must outlive it.
class Inputs {
 public:
  explicit Inputs(Format format) : format_(format) {}
  const void* operator()(const Values& values) {
    if (values.empty()) return nullptr;
    kept_.emplace_back(format_, values);
    return kept_.back().data();
  }

 private:
  Format format_;
  std::vector<Buffer> kept_;
};

inline Outputs run_forward(const Problem& p, const Way& way) {
  const CellKernels& k = *p.kernels;
  const Format f = way.format;
  Inputs in(f);
  Outputs out;
  ForwardArgs args{};
  args.seq = sequence_of(p, way);
  args.w_hh = in(p.w_hh);
  args.b_ih = in(p.b_ih);
  args.b_hh = in(p.b_hh);
  args.w_hr = in(p.w_hr);
  if (way.rh != nullptr) args.rh = in(*way.rh);
  args.y = out.add("y", Buffer(f, p.N * p.P));
  for (int s = 0; s < k.states; ++s) {
    args.initial[s] = in(p.initial[s]);
    args.restart[s] = in(p.segment_start()[s]);
    args.final_states[s] = out.add("final" + std::to_string(s), Buffer(f, p.B * p.width(s)));
  }
  args.gates = out.add("gates", Buffer(f, p.wx));
  args.training = way.training;
  if (way.training) {
    if (k.saved > k.gates) args.extra = out.add("extra", Buffer(f, p.N * (k.saved - k.gates) * p.H));
    if (k.states > 1) args.cells = out.add("cells", Buffer(computed_in(f), p.N * (k.states - 1) * p.H));
    if (p.projecting) args.unprojected = out.add("unprojected", Buffer(f, p.N * p.H));
  }
  out.code = k.forward[static_cast<int>(f)](args);
  return out;
}

// `forward` is the result of run_forward in the same dtype.
inline Outputs run_backward(const Problem& p, const Way& way, const Outputs& forward, bool want_initial = true) {
  const CellKernels& k = *p.kernels;
  const Format f = way.format;
  Inputs in(f);
  Outputs out;
  BackwardArgs args{};
  args.seq = sequence_of(p, way);
  args.w_hh = in(p.w_hh);
  args.w_hr = in(p.w_hr);
  args.gates = forward["gates"].data();
  args.extra = forward["extra"].data();
  args.cells = forward["cells"].data();
  args.y = forward["y"].data();
  args.grad_y = in(p.grad_y);
  args.da = out.add("da", Buffer(f, p.N * k.gates * p.H));
  args.drh = out.add("drh", Buffer(f, p.N * (k.gates - k.split_from) * p.H));
  args.dh = out.add("dh", Buffer(f, p.N * p.P));
  args.initial_product = way.product;
  for (int s = 0; s < k.states; ++s) {
    args.initial[s] = in(p.initial[s]);
    args.restart[s] = in(p.segment_start()[s]);
    args.grad_final[s] = in(p.grad_final[s]);
    if (want_initial) {
      args.grad_initial[s] = out.add("grad_initial" + std::to_string(s), Buffer(f, p.B * p.width(s)));
      if (p.own_restart) {
        args.grad_restart[s] = out.add("grad_restart" + std::to_string(s), Buffer(f, p.B * p.width(s)));
      }
    }
  }
  out.code = k.backward[static_cast<int>(f)](args);
  return out;
}

}  // namespace check
