// One reading of the directional rule, one text for CPU and CUDA; the specification is the torch
// twin, metacurv/_directional_lr.py, and docs/develop/research-log.md says why.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"  // METACURV_HOST_DEVICE

namespace metacurv {

// The rate stays in [kLeastRate, 1 / kLeastRate].
constexpr double kLeastRate = 0x1p-60;
constexpr double kTiny = 1e-9;       // of the slope: below it a curvature counts as none
constexpr double kMostGrowth = 3.0;  // that a reading may ask for, in log units
constexpr double kMostShrinking = 1.0;
constexpr double kBrakedGrowth = 0.5;  // growth, once a rate was found too large
constexpr double kLossDecay = 0.7;     // of the average of the probe batches' losses
constexpr double kMostLost = 0.25;     // of the progress in the loss
constexpr double kProgress = 0.1;      // of the first loss, before any of it can be lost

// Where the parts of `scales` [4, n] and `shared` [6] lie.
enum ScalePart { kRate, kSlope, kCurvature, kBraked };
enum SharedPart { kFirstLoss, kSmoothLoss, kLeastLoss, kReadings, kChange, kAccepted };

// The next average.
METACURV_HOST_DEVICE double mixed(double average, double next, double decay) {
  return decay * average + (1.0 - decay) * next;
}

METACURV_HOST_DEVICE double within(double x, double low, double high) {
  return x < low ? low : x > high ? high : x;
}

// How far the log of the rate is below the one sought; sets the brake where it is above.
METACURV_HOST_DEVICE double rate_error(double slope, double curvature, double rate, double sigma,
                                       double* braked) {
  double error = -kMostShrinking;
  if (slope > 0.0) {
    const double edge = rate * curvature;
    const double least = kTiny * slope;
    error = within(std::log(sigma * slope / (edge > least ? edge : least)), -kMostShrinking,
                   kMostGrowth);
  }
  if (std::isnan(error)) {  // lr d overflows beside sigma n: the rate is large
    error = -kMostShrinking;
  }
  if (error < 0.0) {
    *braked = 1.0;
  }
  return *braked > 0.0 ? within(error, -kMostShrinking, kBrakedGrowth) : error;
}

// Whether the loss of this reading has lost a quarter of the progress; takes it into the average.
METACURV_HOST_DEVICE bool take_loss(double loss, double* shared) {
  const double first = shared[kFirstLoss];
  const double least = shared[kLeastLoss];
  const double progress = first - least;
  const bool risen =
      !(loss <= least + kMostLost * progress) && progress > kProgress * std::fabs(first);
  if (std::isfinite(loss)) {
    shared[kSmoothLoss] = mixed(shared[kSmoothLoss], loss, kLossDecay);
  }
  if (shared[kSmoothLoss] < least) {
    shared[kLeastLoss] = shared[kSmoothLoss];
  }
  return risen;
}

// reading [1 + 2 n]: a loss, n slopes, n curvatures.
METACURV_HOST_DEVICE void directional_lr(double* scales, double* shared, const double* reading,
                                         std::int64_t n, double sigma, double kappa, double beta,
                                         bool searching) {
  bool finite = true;
  for (std::int64_t i = 0; i < 1 + 2 * n; ++i) {
    finite = finite && std::isfinite(reading[i]);
  }
  const bool risen = take_loss(reading[0], shared);
  const double warming = (1.0 + shared[kReadings]) / (10.0 + shared[kReadings]);
  const double decay = warming < beta ? warming : beta;
  bool any_moved = false;
  double change = 0.0;
  for (std::int64_t s = 0; s < n; ++s) {
    double* rate = scales + kRate * n + s;
    double* slope = scales + kSlope * n + s;
    double* curvature = scales + kCurvature * n + s;
    double* braked = scales + kBraked * n + s;
    const double before = *rate;
    const double read_slope = reading[1 + s];
    const double read_curvature = reading[1 + n + s];
    // Both are 0 where nothing under the scale was stepped.
    if (searching && finite && (read_slope != 0.0 || read_curvature != 0.0)) {
      any_moved = true;
      *slope = mixed(*slope, read_slope, decay);
      *curvature = mixed(*curvature, read_curvature, decay);
      const double error = rate_error(*slope, *curvature, *rate, sigma, braked);
      *rate = *rate * std::exp(kappa * error);
    }
    if (risen) {
      *rate /= 2.0;
      *braked = 1.0;
    }
    *rate = within(*rate, kLeastRate, 1.0 / kLeastRate);
    const double moved = std::fabs(std::log(*rate / before));
    change = moved > change ? moved : change;
  }
  shared[kReadings] += any_moved ? 1.0 : 0.0;
  shared[kChange] = change;
  shared[kAccepted] = finite ? 1.0 : 0.0;
}

}  // namespace metacurv
