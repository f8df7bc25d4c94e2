#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/src/choice.h"
#include "bindings/src/registrars.h"
#include "paperlab/nn/encoder_load.h"
#include "paperlab/train/agreement.h"
#include "paperlab/train/fit.h"

namespace paperlab::bindings {
namespace {

namespace py = pybind11;

const std::map<std::string, train::OptimizerKind> kOptimizers = {
    {"adamw", train::OptimizerKind::kAdamW},
    {"sgd", train::OptimizerKind::kSgd},
    {"adafactor", train::OptimizerKind::kAdafactor}};
const std::map<std::string, train::ScheduleKind> kSchedules = {
    {"constant", train::ScheduleKind::kConstant},
    {"cosine", train::ScheduleKind::kCosine},
    {"wsd", train::ScheduleKind::kWsd}};

// Whether to go on, whether it was interrupted, and measures for the event file.
using Reply = std::tuple<bool, bool, std::map<std::string, double>>;
using Columns = std::tuple<std::vector<double>, std::vector<double>, std::vector<double>, bool>;

// State of the data; both or none are given.
using GetState = std::function<std::string()>;
using SetState = std::function<void(const std::string&)>;

// Rows, labels, mask, types of tokens.
using Given = std::tuple<at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>,
                         std::optional<at::Tensor>>;

template <class Model>
Columns fit(Model& model, const train::FitOptions& options,
            const std::function<Given(std::int64_t)>& batch,
            const std::function<Reply(const train::StepRecord&)>& on_step,
            const std::optional<GetState>& data_state,
            const std::optional<SetState>& load_data_state) {
  const auto report = [&on_step](const train::StepRecord& record) {
    const auto [goes_on, is_interrupted, measures] = on_step(record);
    return train::StepReply{goes_on, {measures.begin(), measures.end()}, is_interrupted};
  };
  const auto global_batch = [&batch](std::int64_t step) {
    auto [rows, labels, mask, types] = batch(step);
    return train::Batch(std::move(rows), labels.value_or(at::Tensor()), mask.value_or(at::Tensor()),
                        types.value_or(at::Tensor()));
  };
  train::FitCallbacks callbacks{global_batch, report};
  if (data_state && load_data_state) {
    callbacks.data_state = *data_state;
    callbacks.load_data_state = *load_data_state;
  }
  const train::History history = train::fit(model, options, callbacks);
  Columns columns;
  auto& [loss, grad_norm, learning_rate, is_interrupted] = columns;
  for (const train::StepRecord& record : history.records) {
    loss.push_back(record.loss);
    grad_norm.push_back(record.grad_norm);
    learning_rate.push_back(record.learning_rate);
  }
  is_interrupted = history.is_interrupted;
  return columns;
}

// Does the work in each process of the group; if one fails, all do.
void together(const std::string& group, const std::string& device,
              const std::function<void()>& work) {
  const train::Agreement agreement(train::processes_of_group(group), at::Device(device));
  try {
    agreement.together([&] {
      work();
      return 0.0;
    });
  } catch (const train::LostProcess& lost) {
    throw train::LostProcess(
        std::string("fit: at the start: another process has ended or does not answer: ") +
        lost.what());
  }
}

template <class Model>
void register_fit(py::module_& m) {
  m.def("fit", &fit<Model>, py::arg("model"), py::arg("options"), py::arg("batch"),
        py::arg("on_step"), py::arg("data_state"), py::arg("load_data_state"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void register_train(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      std::rethrow_exception(std::move(pointer));
    } catch (const train::LostProcess& lost) {
      PyErr_SetString(PyExc_ConnectionError, lost.what());
    }
  });
  py::class_<train::StepRecord>(m, "StepRecord")
      .def_readonly("step", &train::StepRecord::step)
      .def_readonly("loss", &train::StepRecord::loss)
      .def_readonly("grad_norm", &train::StepRecord::grad_norm)
      .def_readonly("learning_rate", &train::StepRecord::learning_rate);
  m.def(
      "set_tokenizer_files",
      [](nn::HfDecoder& model, std::vector<std::string> paths) {
        model.directory.tokenizer_files = std::move(paths);
      },
      py::arg("model"), py::arg("paths"));
  using Options = train::FitOptions;
  py::class_<Options>(m, "FitOptions")
      .def(py::init<>())
      .def("set_schedule",
           [](Options& options, const std::string& kind, std::int64_t steps, double learning_rate,
              double min_learning_rate, std::int64_t warmup_steps, std::int64_t decay_steps) {
             options.schedule = {choice(kSchedules, "fit", "schedule", kind),
                                 learning_rate,
                                 min_learning_rate,
                                 steps,
                                 warmup_steps,
                                 decay_steps};
           })
      .def("set_optimizer",
           [](Options& options, const std::string& kind, double beta1, double beta2, double eps,
              double momentum) {
             options.optimizer = {choice(kOptimizers, "fit", "optimizer", kind), beta1, beta2, eps,
                                  momentum};
           })
      .def_readwrite("weight_decay", &Options::weight_decay)
      .def_readwrite("no_decay", &Options::no_decay)
      .def_readwrite("clip_norm", &Options::clip_norm)
      .def_readwrite("computes_in_bfloat16", &Options::computes_in_bfloat16)
      .def_readwrite("accumulate", &Options::accumulate)
      .def_property(
          "out", [](const Options& options) { return py::bytes(options.out); },
          [](Options& options, const py::bytes& path) { options.out = path; })
      .def_readwrite("checkpoint_every", &Options::checkpoint_every)
      .def_readwrite("keep", &Options::keep)
      .def_readwrite("resumes", &Options::resumes)
      .def_readwrite("seed", &Options::seed)
      .def_readwrite("shards_optimizer", &Options::shards_optimizer)
      .def_readwrite("bucket_bytes", &Options::bucket_bytes)
      .def("set_group", [](Options& options, const std::string& name) {
        options.processes = train::processes_of_group(name);
      });
  register_fit<nn::HfDecoder>(m);
  register_fit<nn::HfEncoder>(m);
  m.def("together", &together, py::arg("group"), py::arg("device"), py::arg("work"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace paperlab::bindings
