#include "paperlab/train/fit.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"
#include "tests/paperlab/train/small_model.h"

namespace paperlab::train {
namespace {

FitOptions options(std::int64_t steps, const std::string& out = "") {
  FitOptions given;
  given.schedule.learning_rate = 0.01;
  given.schedule.steps = steps;
  given.out = out;
  return given;
}

FitCallbacks callbacks() {
  return {[](std::int64_t step) { return counting(step); }};
}

bool same_values(const nn::HfDecoder& one, const nn::HfDecoder& other) {
  const auto& a = one.decoder->parameters();
  const auto& b = other.decoder->parameters();
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!at::equal(*a[i].value, *b[i].value)) {
      return false;
    }
  }
  return true;
}

TEST(Fit, LearnsAndReturnsEveryStep) {
  nn::HfDecoder model = small_model();
  const History history = fit(model, options(80), callbacks());
  ASSERT_EQ(history.records.size(), 80U);
  EXPECT_TRUE(history.is_complete);
  EXPECT_EQ(history.num_resumed, 0);
  EXPECT_EQ(history.records[7].step, 7);
  EXPECT_DOUBLE_EQ(history.records[7].learning_rate, 0.01);
  EXPECT_LT(history.records.back().loss, 0.7 * history.records.front().loss);
}

TEST(Fit, StopsAndGoesOnToTheSameBits) {
  const experiments::Scratch folder;
  nn::HfDecoder whole = small_model();
  const History expected = fit(whole, options(9), callbacks());
  nn::HfDecoder first = small_model();
  FitCallbacks stopping = callbacks();
  stopping.on_step = [](const StepRecord& record) {
    return StepReply{record.step < 4, {{"share", 0.5}}};
  };
  const History begun = fit(first, options(9, folder / "run"), stopping);
  EXPECT_FALSE(begun.is_complete);
  EXPECT_EQ(begun.records.size(), 5U);
  nn::HfDecoder second = small_model(99);
  const History ended = fit(second, options(9, folder / "run"), callbacks());
  EXPECT_EQ(ended.num_resumed, 5);
  EXPECT_EQ(ended.records, expected.records);
  EXPECT_TRUE(same_values(second, whole));
}

TEST(Fit, RefusesBeforeAnyWork) {
  const experiments::Scratch folder;
  const std::string out = folder / "out";
  nn::HfDecoder model = small_model();
  const auto refused = [&](auto change) {
    FitOptions given = options(3, out);
    change(given);
    EXPECT_THROW(fit(model, given, callbacks()), ValueError);
    EXPECT_FALSE(std::filesystem::exists(out));
  };
  refused([](FitOptions& o) { o.accumulate = 0; });
  refused([](FitOptions& o) { o.keep = 0; });
  refused([](FitOptions& o) { o.checkpoint_every = -1; });
  refused([](FitOptions& o) { o.clip_norm = 0.0; });
  refused([](FitOptions& o) { o.clip_norm = -1.0; });
  refused([](FitOptions& o) { o.weight_decay = -1.0; });
  refused([](FitOptions& o) { o.schedule.learning_rate = 0.0; });
  EXPECT_THROW(fit(model, options(3, out), FitCallbacks{}), ValueError);
  EXPECT_TRUE(same_values(model, small_model()));
}

TEST(Fit, RefusesBatchesThatCannotBeRead) {
  nn::HfDecoder model = small_model();
  const auto refused = [&](const at::Tensor& batch) {
    EXPECT_THROW(fit(model, options(1), {[&](std::int64_t) { return batch; }}), ValueError);
  };
  refused(at::Tensor());
  refused(at::zeros({3}, at::kLong));
  refused(at::zeros({0, 3}, at::kLong));
  refused(at::zeros({2, 1}, at::kLong));
  refused(at::zeros({2, 11}, at::kLong));  // max_position_embeddings is 9
  refused(at::full({2, 3}, kVocabulary, at::kLong));
  refused(at::full({2, 3}, -1, at::kLong));
  EXPECT_TRUE(same_values(model, small_model()));
}

TEST(Fit, EncodersLearnLabels) {
  nn::HfEncoder tokens = small_encoder();
  nn::HfEncoder pixels = small_vit();
  for (const History& history :
       {fit(tokens, options(60), {[](std::int64_t step) { return labelled(step); }}),
        fit(pixels, options(60), {[](std::int64_t step) { return shades(step); }})}) {
    EXPECT_NEAR(history.records.front().loss, std::log(3.0), 0.7);
    EXPECT_LT(history.records.back().loss, 0.5 * history.records.front().loss);
  }
}

TEST(Fit, EncodersGoOnToTheSameBits) {
  const experiments::Scratch folder;
  const auto data = [](std::int64_t step) { return labelled(step); };
  nn::HfEncoder whole = small_encoder();
  const History expected = fit(whole, options(6), {data});
  nn::HfEncoder first = small_encoder();
  fit(first, options(6, folder / "run"),
      {data, [](const StepRecord& record) { return StepReply{record.step < 3}; }});
  nn::HfEncoder second = small_encoder(99);
  const History ended = fit(second, options(6, folder / "run"), {data});
  EXPECT_EQ(ended.num_resumed, 4);
  EXPECT_EQ(ended.records, expected.records);
  const auto& a = whole.encoder->parameters().list();
  const nn::HfEncoder saved = nn::load_encoder(folder / "run/checkpoint-00000006");
  const auto& b = saved.encoder->parameters().list();
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(at::equal(*a[i].value, *second.encoder->parameters().list()[i].value));
    EXPECT_TRUE(at::equal(*a[i].value, *b[i].value)) << a[i].spec.name;
  }
  nn::HfEncoder wider = small_encoder(1, {{"intermediate_size", 24}});
  EXPECT_THROW(fit(wider, options(6, folder / "run"), {data}), ValueError);
}

TEST(Fit, RefusesBatchesThatEncodersCannotRead) {
  nn::HfEncoder tokens = small_encoder();
  nn::HfEncoder pixels = small_vit();
  const auto message = [](nn::HfEncoder& model, const Batch& batch) {
    try {
      fit(model, options(1), {[&](std::int64_t) { return batch; }});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  const Batch good = labelled(0, 2);
  const at::Tensor picture = at::zeros({2, 1, 4, 4});
  const std::string data = "fit: data(0) must return ";
  EXPECT_EQ(message(tokens, {good.rows, at::full({2}, 3, at::kLong)}),
            data + "labels in 0..num_labels - 1 (2), got 3");
  EXPECT_EQ(message(pixels, {picture, at::full({2}, -1, at::kLong)}),
            data + "labels in 0..num_labels - 1 (2), got -1");
  EXPECT_EQ(message(tokens, {good.rows}), data + "labels [2], one a row, got nothing");
  EXPECT_EQ(message(tokens, {good.rows, at::zeros({2})}), data + "labels in int64, got Float");
  EXPECT_EQ(message(tokens, {at::zeros({2, 10}, at::kLong), good.labels}),
            data + "at most 9 tokens a row (max_position_embeddings), got 10");
  EXPECT_EQ(message(tokens, {picture, good.labels}),
            data + "[B, T] with B, T >= 1, got [2, 1, 4, 4]");
  EXPECT_EQ(message(pixels, {picture.narrow(3, 0, 3), good.labels}),
            data + "pixels [B, 1, 4, 4] with B >= 1, got [2, 1, 4, 3]");
  EXPECT_EQ(message(pixels, {picture.to(at::kLong), good.labels}),
            data + "floating pixels, got Long");
  EXPECT_EQ(message(pixels, {picture.div(0.0), good.labels}), data + "finite pixels, got others");
  EXPECT_EQ(message(tokens, {good.rows, good.labels, good.labels}),
            data + "a mask of the shape of tokens [2, 7], got [2]");
  const at::Tensor& types = good.token_type_ids;
  EXPECT_EQ(message(tokens, {good.rows, good.labels, {}, types.narrow(1, 0, 6)}),
            data + "token_type_ids of the shape of tokens [2, 7], got [2, 6]");
  EXPECT_EQ(message(tokens, {good.rows, good.labels, {}, types.to(at::kInt)}),
            data + "token_type_ids in int64, got Int");
  EXPECT_EQ(message(tokens, {good.rows, good.labels, {}, types.add(1)}),
            data + "token_type_ids in 0..type_vocab_size - 1 (1), got 2");
  EXPECT_EQ(message(pixels, {picture, good.labels, {}, types}),
            data + "no token_type_ids with pixels, got some");
  nn::HfEncoder masked = small_encoder(1, {{"architectures", {"BertForMaskedLM"}}});
  EXPECT_EQ(message(masked, good),
            "fit: model must classify sequences or pictures (...ForSequenceClassification, "
            "...ForImageClassification), got an encoder with logits of tokens of the vocabulary");
  nn::HfEncoder one = small_encoder(1, {{"num_labels", 1}});
  EXPECT_EQ(message(one, good), "fit: model must have num_labels >= 2, got 1");
  nn::HfEncoder many = small_encoder(1, {{"problem_type", "multi_label_classification"}});
  EXPECT_EQ(message(many, good),
            "fit: problem_type must be single_label_classification or absent, got "
            "\"multi_label_classification\"");
}

TEST(Fit, AnExceptionOfACallbackComesThrough) {
  struct Stop {};
  nn::HfDecoder model = small_model();
  EXPECT_THROW(fit(model, options(1), {[](std::int64_t) -> at::Tensor { throw Stop(); }}), Stop);
}

}  // namespace
}  // namespace paperlab::train
