#pragma once
// What rows of trained models share between the CPU's presets and the gpu preset.

#include <vector>

#include "experiments/mudd/jobs.h"

namespace paperlab::experiments::mudd {

// Each method at each size.
std::vector<Series> sized(const std::vector<std::int64_t>& layers,
                          const std::vector<std::int64_t>& widths,
                          const std::vector<std::string>& methods);

// Record the curves of Fig. 4, and the losses of Fig. 9, of trained series.
void record_figure4(Run& run, const Trainer& trainer, const std::vector<Series>& all);
void record_figure9(Run& run, const Trainer& trainer);

}  // namespace paperlab::experiments::mudd
