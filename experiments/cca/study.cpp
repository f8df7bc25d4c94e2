#include "experiments/cca/study.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <numeric>

#include "experiments/common/side_by_side.h"

namespace paperlab::experiments::cca {
namespace {

constexpr char kBase[] = "base";
constexpr char kDone[] = ": steps";

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

void Tasks::run(const std::vector<Task>& tasks) {
  std::vector<Outcome> outcomes(tasks.size());
  run_side_by_side(run_.num_threads(), tasks.size(),
                   [&](std::size_t i) {
                     at::set_num_threads(1);  // of the calling thread
                     outcomes[i] = tasks[i].run([this] { ++num_done_; });
                   },
                   {[&](std::size_t i) { record(tasks[i], outcomes[i]); },
                    [this] { run_.progress(num_done_, std::max<std::int64_t>(num_planned_, 1)); }});
}

void complete(Run& run, const std::vector<Task>& tasks) {
  Tasks all(run);
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
  Tasks all(run_);
  std::map<std::uint64_t, Tensors> trained;  // threads only fill what is there
  std::vector<Task> bases;
  std::vector<Task> rest;
  for (const std::uint64_t seed : seeds) {
    const std::size_t before = rest.size();
    Tensors& values = trained[seed];
    for (const Fork& fork : forks) {
      const std::string name = task_name(seed, fork.name);
      if (!all.is_done(name)) {
        rest.push_back({name, fork.num_steps, [seed, &fork, &values](const OnStep& on_step) {
                          return fork.run(seed, values, on_step);
                        }});
      }
    }
    const std::string name = task_name(seed, kBase);
    if (rest.size() > before || !all.is_done(name)) {
      bases.push_back({name, base.num_steps, [seed, &base, &values](const OnStep& on_step) {
                         Outcome outcome;
                         values = base.train(seed, on_step, outcome);
                         return outcome;
                       }});
    }
  }
  all.plan(bases);
  all.plan(rest);
  all.run(bases);
  all.run(rest);
}

}  // namespace paperlab::experiments::cca
