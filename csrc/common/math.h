// exp and log, one polynomial each for host and device.
//
// libm, the CUDA library and the vectoriser's own versions differ in the last bit, and one bit moves
// a box across an IoU threshold. These use only +, -, *, / and bit operations, which IEEE 754 fixes,
// so CPU and GPU agree as long as nothing is contracted into an FMA (-ffp-contract=off, --fmad=false).
// No branches: the loops around them vectorise. Error below 1.1 ulp over the whole range (measured
// against mpmath by tests/ops/test_encode_decode.py); the coefficients are Chebyshev fits made for this file.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace ssd_ops {

template <typename To, typename From>
SSD_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename T>
struct FloatTraits;

template <>
struct FloatTraits<float> {
  using Bits = uint32_t;
  using Signed = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kBias = 127;
  static constexpr Bits kInf = 0x7f800000u;
  static constexpr Bits kNan = 0x7fc00000u;
  static constexpr Bits kRootHalf = 0x3f3504f3u;  // sqrt(1/2), where log splits the mantissa
  static constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kTwoMantissa = 8388608.0f;
  static constexpr float kMinNormal = 1.17549435e-38f;
  static constexpr float kLog2e = 1.44269504088896341f;
  // ln 2 in two parts; the upper has 15 bits, so that n * upper is exact for every exponent n.
  static constexpr float kLn2Hi = 0.693145751953125f;
  static constexpr float kLn2Lo = 1.42860682030941723e-6f;
  static constexpr float kExpMin = -104.0f;  // exp is 0 below
  static constexpr float kExpMax = 89.0f;    // and infinite above
};

template <>
struct FloatTraits<double> {
  using Bits = uint64_t;
  using Signed = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kBias = 1023;
  static constexpr Bits kInf = 0x7ff0000000000000u;
  static constexpr Bits kNan = 0x7ff8000000000000u;
  static constexpr Bits kRootHalf = 0x3fe6a09e667f3bcdu;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kTwoMantissa = 4503599627370496.0;
  static constexpr double kMinNormal = 2.2250738585072014e-308;
  static constexpr double kLog2e = 1.44269504088896341;
  static constexpr double kLn2Hi = 0.6931471803691238;  // 32 bits
  static constexpr double kLn2Lo = 1.9082149292705878161e-10;
  static constexpr double kExpMin = -746.0;
  static constexpr double kExpMax = 710.0;
};

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2.
SSD_HOST_DEVICE float exp_tail(float r) {
  return 0.5f +
         r * (0.166665769896987757f +
              r * (0.0416665546172045742f + r * (0.00836317905272257737f + r * 0.00139261835877134945f)));
}
SSD_HOST_DEVICE double exp_tail(double r) {
  return 0.5 + r * (0.16666666666666671 +
                    r * (0.0416666666666666698 +
                         r * (0.00833333333332613513 +
                              r * (0.00138888888888837483 +
                                   r * (0.000198412698748206253 +
                                        r * (0.0000248015873255477412 +
                                             r * (2.75572554002064244e-6 +
                                                  r * (2.75572736431102953e-7 +
                                                       r * (2.51052170047207452e-8 +
                                                            r * 2.09146869680868772e-9)))))))));
}

// (2 atanh(s) - 2 s) / (s z) with z = s^2, for s = f / (2 + f) and 1 + f in sqrt(1/2)..sqrt(2).
SSD_HOST_DEVICE float log_tail(float z) {
  return 0.666666665544516463f +
         z * (0.400001218769720015f + z * (0.285508165997115487f + z * 0.233305819382418938f));
}
SSD_HOST_DEVICE double log_tail(double z) {
  return 0.666666666666666969 +
         z * (0.399999999998994432 +
              z * (0.285714286260032687 +
                   z * (0.22222211130259877 +
                        z * (0.18182889455674946 + z * (0.153317106182107716 + z * 0.14616585424888622)))));
}

template <typename T>
SSD_HOST_DEVICE T power_of_two(typename FloatTraits<T>::Signed n) {
  using F = FloatTraits<T>;
  return bit_cast<T>((static_cast<typename F::Bits>(n) + F::kBias) << F::kMantissa);
}

template <typename T>
SSD_HOST_DEVICE T exp(T x) {
  using F = FloatTraits<T>;
  using Bits = typename F::Bits;
  using Signed = typename F::Signed;
  // Comparisons in this form let a NaN through, and the result is NaN.
  x = x < F::kExpMin ? F::kExpMin : x;
  x = x > F::kExpMax ? F::kExpMax : x;
  const T shifted = x * F::kLog2e + F::kRounder;
  const T n = shifted - F::kRounder;
  const T r = (x - n * F::kLn2Hi) - n * F::kLn2Lo;
  const T value = T(1) + (r + r * r * exp_tail(r));
  // Two factors, since 2^n alone is no normal number at either end of the range.
  const auto exponent = static_cast<Signed>(bit_cast<Bits>(shifted) - bit_cast<Bits>(F::kRounder));
  const Signed half = exponent >> 1;
  return value * power_of_two<T>(half) * power_of_two<T>(exponent - half);
}

template <typename T>
SSD_HOST_DEVICE T log(T x) {
  using F = FloatTraits<T>;
  using Bits = typename F::Bits;
  using Signed = typename F::Signed;
  const bool tiny = x < F::kMinNormal;  // subnormal (or zero, or negative: replaced below)
  const T scaled = tiny ? x * F::kTwoMantissa : x;
  const Bits bits = bit_cast<Bits>(scaled);
  const Signed k = static_cast<Signed>(bits - F::kRootHalf) >> F::kMantissa;
  const T f = bit_cast<T>(bits - (static_cast<Bits>(k) << F::kMantissa)) - T(1);
  const T s = f / (T(2) + f);
  const T z = s * s;
  const T half_square = T(0.5) * f * f;
  const T exponent = static_cast<T>(k) - (tiny ? T(F::kMantissa) : T(0));
  T value = exponent * F::kLn2Hi -
            ((half_square - (s * (half_square + z * log_tail(z)) + exponent * F::kLn2Lo)) - f);
  value = x == T(0) ? bit_cast<T>(F::kInf | (Bits(1) << (8 * sizeof(T) - 1))) : value;
  value = x == bit_cast<T>(F::kInf) ? x : value;
  return x >= T(0) ? value : bit_cast<T>(F::kNan);
}

}  // namespace ssd_ops
