// Faults that a running process can switch on: fault_number says which one, 0 none. faults_csrc.py plants them
// as calls of these functions, so one build holds all faults, and a fault costs a run of tests, no compilation.
//
// A binary operator becomes two: `a < At<7>() < b`. Both have the precedence of the one that was there, so the
// expression is read as before, and the operands need not be found.
#pragma once

#include <algorithm>
#include <type_traits>

extern "C" {
inline __attribute__((visibility("default"))) int fault_number = 0;
inline __attribute__((visibility("default"))) unsigned char fault_reached[1 << 16] = {};
}

namespace fault {

#define FAULT_INLINE [[gnu::always_inline]] constexpr

// Whether the fault N is switched on. What the compiler computes itself has none.
template <int N>
FAULT_INLINE bool on() {
  if (__builtin_is_constant_evaluated()) return false;
  fault_reached[N] = 1;
  return fault_number == N;
}

template <int N>
struct At {};

template <int N, typename A>
struct Left {
  A a;
};

#define FAULT_OPERATOR(op, other)                       \
  template <int N, typename A>                          \
  FAULT_INLINE Left<N, A> operator op(A a, At<N>) {     \
    return {a};                                         \
  }                                                     \
  template <int N, typename A, typename B>              \
  FAULT_INLINE auto operator op(Left<N, A> left, B b) { \
    return on<N>() ? left.a other b : left.a op b;      \
  }
FAULT_OPERATOR(<, <=)
FAULT_OPERATOR(<=, <)
FAULT_OPERATOR(>, >=)
FAULT_OPERATOR(>=, >)
FAULT_OPERATOR(==, !=)
FAULT_OPERATOR(!=, ==)
FAULT_OPERATOR(+, -)
FAULT_OPERATOR(-, +)
FAULT_OPERATOR(*, +)
FAULT_OPERATOR(/, *)
FAULT_OPERATOR(%, *)
FAULT_OPERATOR(&, |)
FAULT_OPERATOR(|, &)

template <int N, typename T>
FAULT_INLINE T constant(T value) {
  return on<N>() ? static_cast<T>(value + T(1)) : value;
}

#define FAULT_EXTREME(name, call, other)       \
  template <int N, typename T>                 \
  FAULT_INLINE T name(T a, T b) {              \
    return on<N>() ? other(a, b) : call(a, b); \
  }
#define FAULT_STANDARD_MIN std::min<T>
#define FAULT_STANDARD_MAX std::max<T>
FAULT_EXTREME(standard_min, FAULT_STANDARD_MIN, FAULT_STANDARD_MAX)
FAULT_EXTREME(standard_max, FAULT_STANDARD_MAX, FAULT_STANDARD_MIN)

// Those of csrc/common/box.h, which are not declared yet.
template <int N, typename T>
FAULT_INLINE T min_of(T a, T b) {
  return (on<N>() ? a > b : a < b) ? a : b;
}
template <int N, typename T>
FAULT_INLINE T max_of(T a, T b) {
  return (on<N>() ? a < b : a > b) ? a : b;
}

}  // namespace fault
