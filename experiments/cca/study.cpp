#include "experiments/cca/study.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <map>
#include <numeric>

#include "experiments/common/side_by_side.h"

namespace paperlab::experiments::cca {
namespace {

constexpr char kBase[] = "base";
constexpr char kDone[] = ": steps";

// Each a base, which comes first, and its forks.
void run_studies(Tasks& all, const std::vector<std::vector<Task>>& by_seed) {
  if (!all.are_side_by_side()) {
    for (const std::vector<Task>& study : by_seed) {
      all.run_within_limit(study, 2);  // a base that no fork follows is trained in vain
    }
    return;
  }
  std::vector<Task> bases;
  std::vector<Task> forks;
  for (const std::vector<Task>& study : by_seed) {
    bases.push_back(study.front());
    forks.insert(forks.end(), study.begin() + 1, study.end());
  }
  all.run(bases);
  all.run(forks);
}

}  // namespace

std::vector<double> row_numbers(std::size_t count) {
  std::vector<double> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 1.0);
  return numbers;
}

bool Tasks::is_done(const std::string& task) const { return run_.find(task + kDone).has_value(); }

void Tasks::plan(const std::vector<Task>& tasks) {
  for (const Task& task : tasks) {
    num_planned_ += task.num_steps;
  }
}

void Tasks::record(const Task& task, const Outcome& outcome) {
  if (is_done(task.name)) {
    return;
  }
  for (const auto& [what, value] : outcome.scalars) {
    run_.scalar(task.name + ": " + what, value);
  }
  for (const auto& [what, columns] : outcome.series) {
    run_.series(task.name + ": " + what, columns);
  }
  run_.scalar(task.name + kDone, static_cast<double>(task.num_steps));
  run_.keep();
}

// In the calling thread, which LibTorch's may help.
void Tasks::run_here(const Task& task) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  const Outcome outcome =
      task.run([this] { run_.progress(++num_done_, std::max<std::int64_t>(num_planned_, 1)); });
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const auto steps = static_cast<double>(std::max<std::int64_t>(task.num_steps, 1));
  step_s_ = std::max(step_s_, seconds / steps);
  record(task, outcome);
}

void Tasks::run_within_limit(const std::vector<Task>& tasks, std::size_t least) {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (i == 0 || i >= least) {
      std::int64_t steps = tasks[i].num_steps;
      for (std::size_t more = i + 1; more < std::min(least, tasks.size()); ++more) {
        steps += tasks[more].num_steps;
      }
      run_.begin_part(step_s_ * static_cast<double>(steps));
    }
    run_here(tasks[i]);
  }
}

void Tasks::run(const std::vector<Task>& tasks) {
  if (!are_side_by_side()) {
    run_within_limit(tasks, 1);
    return;
  }
  std::vector<Outcome> outcomes(tasks.size());
  run_side_by_side(run_.num_threads(), tasks.size(),
                   [&](std::size_t i) {
                     at::set_num_threads(1);  // of the calling thread
                     outcomes[i] = tasks[i].run([this] { ++num_done_; });
                   },
                   {[&](std::size_t i) { record(tasks[i], outcomes[i]); },
                    [this] { run_.progress(num_done_, std::max<std::int64_t>(num_planned_, 1)); }});
}

void complete(Run& run, double step_s, const std::vector<Task>& tasks) {
  Tasks all(run, step_s);
  std::vector<Task> missing;
  for (const Task& task : tasks) {
    if (!all.is_done(task.name)) {
      missing.push_back(task);
    }
  }
  all.plan(missing);
  all.run(missing);
}

std::string Study::task_name(std::uint64_t seed, const std::string& fork) const {
  return name_ + " seed " + std::to_string(seed) + " " + fork;
}

double Study::mean(const std::vector<std::uint64_t>& seeds, const std::string& fork,
                   const std::string& what) const {
  double sum = 0.0;
  for (const std::uint64_t seed : seeds) {
    sum += run_.value_of(task_name(seed, fork) + ": " + what);
  }
  return sum / static_cast<double>(seeds.size());
}

void Study::complete(const std::vector<std::uint64_t>& seeds, const Base& base,
                     const std::vector<Fork>& forks) {
  Tasks all(run_, step_s_);
  std::map<std::uint64_t, Tensors> trained;  // threads only fill what is there
  std::vector<std::vector<Task>> by_seed;    // a base and its forks
  for (const std::uint64_t seed : seeds) {
    Tensors& values = trained[seed];
    std::vector<Task> missing;
    for (const Fork& fork : forks) {
      const std::string name = task_name(seed, fork.name);
      if (!all.is_done(name)) {
        missing.push_back({name, fork.num_steps, [seed, &fork, &values](const OnStep& on_step) {
                             return fork.run(seed, values, on_step);
                           }});
      }
    }
    const std::string name = task_name(seed, kBase);
    if (!missing.empty() || !all.is_done(name)) {
      missing.insert(missing.begin(),
                     Task{name, base.num_steps, [seed, &base, &values](const OnStep& on_step) {
                            Outcome outcome;
                            values = base.train(seed, on_step, outcome);
                            return outcome;
                          }});
      all.plan(missing);
      by_seed.push_back(std::move(missing));
    }
  }
  run_studies(all, by_seed);
}

}  // namespace paperlab::experiments::cca
