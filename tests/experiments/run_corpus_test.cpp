#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/experiments/run_cases.h"

namespace paperlab::experiments {
namespace {

class CorpusTest : public RunTest {
 protected:
  CorpusTest() {
    driver = [this](const Config&, Driven& run) {
      run.row("F1", [] {});
      run.row("F2", Corpus{"pages", {"en", "de"}}, [&](const std::string& folder) {
        folder_ = folder;
        run.claim("C2", 1);
      });
    };
  }

  /// "NAME=FOLDER" of tokens whose text has this hash.
  std::string tokens(const std::string& hash) const {
    const Json manifest = {{"format", 1},
                           {"vocab_size", 256},
                           {"dtype", "uint8"},
                           {"domains", {{{"name", "en"}, {"splits", Json::object()}}}},
                           {"recipe", {{"name", "pages"}, {"sha256", hash}}}};
    scratch_.write("tokens/manifest.json", manifest.dump());
    return "pages:en,de=" + (scratch_ / "tokens");
  }

  std::string folder_;
};

TEST_F(CorpusTest, ARowGetsTheFolderAndTheResultTheHash) {
  EXPECT_EQ(call({"--corpus", tokens("abc")}).code, 0);
  EXPECT_EQ(folder_, scratch_ / "tokens");
  EXPECT_EQ(result()["claims"][1]["verdict"], "holds");
  EXPECT_EQ(result()["environment"]["corpora"], (Json{{"pages:en,de", "abc"}}));
  const std::string before = scratch_.read("out/toy-paper/result.json");
  EXPECT_NE(call().out.find("up to date"), std::string::npos);  // needs no text any more
  EXPECT_EQ(scratch_.read("out/toy-paper/result.json"), before);
}

TEST_F(CorpusTest, WithoutTheTextTheRowIsLeftOutUntilItIsThere) {
  const Outcome outcome = call({"--no-corpus", "pages:en,de=en: no network"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
  const std::string why = "Row F2 needs pages:en,de, which is missing: en: no network.";
  EXPECT_NE(outcome.out.find("toy-paper: " + why), std::string::npos) << outcome.out;
  EXPECT_EQ(result()["claims"][1]["verdict"], "not tested at this scale");
  EXPECT_EQ(result()["claims"][1]["why"], why);
  const std::string before = scratch_.read("out/toy-paper/result.json");
  call({"--no-corpus", "pages:en,de=en: no network"});
  EXPECT_EQ(scratch_.read("out/toy-paper/result.json"), before);
  EXPECT_NE(call().out.find("which is missing: no --corpus names it."), std::string::npos);
  EXPECT_NE(call({"--corpus", tokens("abc")}).out.find("goes on from 1 of 2 rows"),
            std::string::npos);
  EXPECT_EQ(result()["claims"][1]["verdict"], "holds");
}

TEST_F(CorpusTest, AnotherTextStartsAnew) {
  call({"--corpus", tokens("abc")});
  const Outcome other = call({"--corpus", tokens("xyz")});
  EXPECT_NE(other.out.find("pages:en,de was abc and is xyz"), std::string::npos);
  EXPECT_EQ(result()["environment"]["corpora"], (Json{{"pages:en,de", "xyz"}}));
}

TEST_F(CorpusTest, ListsTheTextsOfTheRowsThatAreToRun) {
  EXPECT_EQ(call({"--list-corpora"}).out, "pages:en,de\n");
  EXPECT_EQ(call({"--list-corpora", "--only", "F1"}).out, "");
  EXPECT_FALSE(scratch_.has("out"));
  call({"--corpus", tokens("abc")});
  EXPECT_EQ(call({"--list-corpora"}).out, "");
  EXPECT_EQ(call({"--list-corpora", "--resume", "never"}).out, "pages:en,de\n");
}

TEST_F(CorpusTest, AFolderWithoutTokensIsOneLine) {
  expect_failure(1, "none/manifest.json", {"--corpus", "pages:en,de=" + (scratch_ / "none")});
  scratch_.write("tokens/manifest.json", "{}");
  expect_failure(1, "tokens/manifest.json: ", {"--corpus", "pages:en,de=" + (scratch_ / "tokens")});
}

TEST(CorpusNameTest, ANameSaysWhichTextItIs) {
  for (const char* name : {"pages:en,de@tiny", "pages:en", "pages@tiny", "pages", "a:,"}) {
    EXPECT_EQ(Corpus::of_name(name).name(), name);
  }
  const Corpus corpus = Corpus::of_name("pages:en,de@tiny");
  EXPECT_EQ(corpus.recipe, "pages");
  EXPECT_EQ(corpus.domains, (std::vector<std::string>{"en", "de"}));
  EXPECT_EQ(corpus.model, "tiny");
}

class CorporaTest : public CorpusTest {
 protected:
  CorporaTest() {
    driver = [this](const Config&, Driven& run) {
      run.row("F1", [] {});
      run.row("F2", {Corpus{"pages", {"en", "de"}}, Corpus{"code", {"c"}}},
              [&](const std::vector<std::string>& folders) {
                folders_ = folders;
                run.claim("C2", 1);
              });
    };
  }

  std::vector<std::string> folders_;
};

TEST_F(CorporaTest, ARowGetsAllFoldersOrIsLeftOut) {
  const std::string pages = tokens("abc");
  const std::string code = "code:c=" + (scratch_ / "tokens");
  EXPECT_EQ(call({"--list-corpora"}).out, "pages:en,de\ncode:c\n");
  call({"--corpus", pages});
  EXPECT_EQ(result()["claims"][1]["why"],
            "Row F2 needs code:c, which is missing: no --corpus names it.");
  EXPECT_TRUE(folders_.empty());
  EXPECT_EQ(call({"--corpus", pages, "--corpus", code}).code, 0);
  EXPECT_EQ(folders_, (std::vector<std::string>{scratch_ / "tokens", scratch_ / "tokens"}));
  EXPECT_EQ(result()["environment"]["corpora"], (Json{{"code:c", "abc"}, {"pages:en,de", "abc"}}));
}

class ProductTest : public CorpusTest {
 protected:
  ProductTest() {
    driver = [this](const Config& config, Driven& run) {
      run.row("F1", [] {});
      run.row("F2",
              {Corpus{"digits", {}}, Product{"other/run 1", "other.py", {{"scale", config.scale}}}},
              [&](const std::vector<std::string>& folders) {
                folders_ = folders;
                run.claim("C2", 1);
              });
    };
  }

  /// The folder of a product that has this hash.
  std::string product(const std::string& hash) const {
    const Json manifest = {{"recipe", {{"sha256", hash}}}, {"made_by", "other 1.2"}};
    scratch_.write("product/manifest.json", manifest.dump());
    return "other/run 1=" + (scratch_ / "product");
  }

  std::string pictures() const {
    const Json record = {{"folder", "images-abc"}, {"documents", Json::object()}};
    const Json manifest = {{"recipe", "digits"}, {"domains", {{"images", record}}}};
    scratch_.write("digits/manifest.json", manifest.dump());
    return "digits=" + (scratch_ / "digits");
  }

  std::vector<std::string> folders_;
};

TEST_F(ProductTest, ItsProgramAndRequestAreListed) {
  const std::string program = scratch_ / "experiments/toy_paper/other.py";
  EXPECT_EQ(call({"--list-corpora", "--set", "scale=2.5"}).out,
            "digits\nother/run 1\t" + program + "\t{\"scale\":2.5}\n");
}

TEST_F(ProductTest, TheResultSaysWhatMadeIt) {
  EXPECT_EQ(call({"--corpus", pictures(), "--corpus", product("123")}).err, "");
  EXPECT_EQ(folders_, (std::vector<std::string>{scratch_ / "digits", scratch_ / "product"}));
  EXPECT_EQ(result()["environment"]["corpora"],
            (Json{{"digits", "images-abc"}, {"other/run 1", "123"}}));
  EXPECT_EQ(result()["environment"]["made_by"], (Json{{"other/run 1", "other 1.2"}}));
  call({"--only", "F1"});  // needs none of it, and keeps what is known
  EXPECT_EQ(result()["environment"]["made_by"], (Json{{"other/run 1", "other 1.2"}}));
  EXPECT_NE(call({"--corpus", pictures(), "--corpus", product("456")})
                .out.find("other/run 1 was 123 and is 456"),
            std::string::npos);
}

TEST_F(ProductTest, WithoutItTheRowIsLeftOut) {
  const Outcome outcome =
      call({"--corpus", pictures(), "--no-corpus", "other/run 1=other is not installed"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(result()["claims"][1]["why"],
            "Row F2 needs other/run 1, which is missing: other is not installed.");
}

TEST(NeedTest, ANameHasNoEqualsSign) {
  for (const char* name : {"", "a=b", "a\tb"}) {
    const Product product{name, "x.py", {}};
    PAPERLAB_EXPECT_THROW(Need{product}, ValueError, "a product needs a name");
  }
}

}  // namespace
}  // namespace paperlab::experiments
