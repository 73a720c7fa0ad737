// Files become documents, wherever a reader begins.
#include "dataset/document_reader.h"

#include <gmock/gmock.h>
#include <zstd.h>

#include "dataset_fixture.h"

namespace hadal::test {
namespace {

using dataset::DocumentReader;
using dataset::RawDocument;
using dataset::SourceFile;
using dataset::SourceKind;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<std::string> kTextExtensions = {"txt", "md"};

std::string compressed(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

class Reader : public ::testing::Test {
 protected:
  std::vector<SourceFile> sources(std::vector<Path> inputs) const {
    return dataset::find_sources(inputs, kTextExtensions);
  }
  std::vector<std::string> texts(const std::vector<SourceFile>& files,
                                 const std::string& separator = "") const {
    DocumentReader reader(files, separator);
    std::vector<std::string> out;
    while (auto document = reader.next()) {
      EXPECT_EQ(document->index, std::ssize(out));
      out.push_back(document->text);
    }
    return out;
  }
  const ScratchDirectory scratch_{"sources"};
};

TEST_F(Reader, FindsFilesInOrder) {
  std::filesystem::create_directories(scratch_ / "d/sub");
  for (const char* name : {"d/b.txt", "d/a.md", "d/sub/c.jsonl", "d/sub/d.txt.zst", "d/x.png"}) {
    write_text(scratch_ / name, "x");
  }
  write_text(scratch_ / "z.txt", "x");
  const auto files = sources({scratch_ / "z.txt", scratch_ / "d"});
  std::vector<std::string> names;
  for (const SourceFile& file : files) names.push_back(file.path.filename().string());
  EXPECT_THAT(names, ElementsAre("z.txt", "a.md", "b.txt", "c.jsonl", "d.txt.zst"));
  EXPECT_EQ(files[3].kind, SourceKind::jsonl);
  EXPECT_TRUE(files[4].compressed);
  const std::string before = dataset::digest_of(files);
  write_text(scratch_ / "z.txt", "xy");
  EXPECT_NE(dataset::digest_of(sources({scratch_ / "z.txt", scratch_ / "d"})), before);
}

TEST_F(Reader, RefusesWhatIsNoSource) {
  std::filesystem::create_directories(scratch_ / "empty");
  write_text(scratch_ / "x.png", "x");
  write_text(scratch_ / "x.txt", "x");
  EXPECT_THAT(error_of([&] { (void)sources({scratch_ / "nowhere"}); }, ErrorCode::not_found),
              HasSubstr("nowhere"));
  EXPECT_THAT(error_of([&] { (void)sources({scratch_ / "empty"}); }, ErrorCode::not_found),
              AllOf(HasSubstr("no file to read"), HasSubstr(".jsonl, .txt, .md")));
  EXPECT_THAT(error_of([&] { (void)sources({scratch_ / "x.png"}); }, ErrorCode::invalid_argument),
              HasSubstr("--text-extension"));
  EXPECT_THAT(error_of([&] { (void)sources({scratch_ / "x.txt", scratch_ / "empty/../x.txt"}); },
                       ErrorCode::invalid_argument),
              HasSubstr("named twice"));
}

TEST_F(Reader, ATextFileIsADocument) {
  write_text(scratch_ / "a.txt", "one\n\ntwo\n");
  write_text(scratch_ / "b.txt",
             "\xEF\xBB\xBF"
             "marked");
  write_text(scratch_ / "c.txt", "");
  EXPECT_THAT(texts(sources({scratch_.path()})), ElementsAre("one\n\ntwo\n", "marked", ""));
}

TEST_F(Reader, ASeparatorCutsItIntoSeveral) {
  write_text(scratch_ / "a.txt", "one\n<end>\ntwo<end>three<end>\r\n\n<end>");
  EXPECT_THAT(texts(sources({scratch_.path()}), "<end>"),
              ElementsAre("one\n", "two", "three", "\n"));
  const auto files = sources({scratch_.path()});
  DocumentReader reader(files, "<end>");
  EXPECT_EQ(reader.next()->line, 1);
  const auto two = reader.next();
  EXPECT_EQ(two->line, 3);
  EXPECT_EQ(two->offset, 10U);
}

TEST_F(Reader, AJsonlLineIsADocument) {
  write_text(scratch_ / "a.jsonl", "{\"text\": \"x\"}\n\n  \r\n{\"text\": \"y\"}\r\n{}");
  const auto files = sources({scratch_.path()});
  EXPECT_THAT(texts(files), ElementsAre("{\"text\": \"x\"}", "{\"text\": \"y\"}\r", "{}"));
  DocumentReader reader(files, "ignored");
  (void)reader.next();
  const auto second = reader.next();
  EXPECT_EQ(second->line, 4);
  EXPECT_THAT(dataset::place_of(*second, files), HasSubstr("a.jsonl:4"));
}

// Longer than what is read at once, with delimiters on every kind of edge.
TEST_F(Reader, ABeginningInTheMiddleGivesTheSameRest) {
  std::string text, lines;
  for (int i = 0; i < 700; ++i) {
    text += std::string(static_cast<std::size_t>(i * 37 % 9001), 'a' + i % 26) + "<-->";
    lines += "{\"text\": \"" + std::string(static_cast<std::size_t>(i * 53 % 7001), 'b') + "\"}\n";
  }
  write_text(scratch_ / "a.txt", text);
  write_text(scratch_ / "b.jsonl", lines);
  write_text(scratch_ / "c.jsonl.zst", compressed(lines) + compressed("{\"x\": 1}\n"));
  write_text(scratch_ / "d.txt.zst", compressed(text));
  const auto files = sources({scratch_.path()});
  std::vector<RawDocument> all;
  DocumentReader reader(files, "<-->");
  while (auto document = reader.next()) all.push_back(std::move(*document));
  EXPECT_EQ(all.size(), 700U + 700U + 701U + 700U);
  EXPECT_EQ(reader.n_file_bytes(),
            files[0].nbytes + files[1].nbytes + files[2].nbytes + files[3].nbytes);
  for (std::size_t i = 0; i < all.size(); i += i < all.size() - 3 ? 97 : 1) {
    DocumentReader later(files, "<-->", all[i].after);
    for (std::size_t j = i + 1; j < std::min(i + 4, all.size()); ++j) {
      const auto document = later.next();
      ASSERT_TRUE(document.has_value());
      EXPECT_EQ(document->text, all[j].text);
      EXPECT_EQ(document->index, all[j].index);
      EXPECT_EQ(document->line, all[j].line);
      EXPECT_EQ(document->offset, all[j].offset);
      EXPECT_EQ(document->after, all[j].after);
    }
    if (i + 1 == all.size()) {
      EXPECT_FALSE(later.next().has_value());
    }
  }
}

TEST_F(Reader, ADamagedZstdFileIsNamed) {
  const std::string good = compressed(std::string(100000, 'x') + "end");
  write_text(scratch_ / "a.txt.zst", good.substr(0, good.size() - 3));
  EXPECT_THAT(error_of([&] { (void)texts(sources({scratch_.path()})); }, ErrorCode::corrupt_data),
              AllOf(HasSubstr("a.txt.zst"), HasSubstr("cut off")));
  write_text(scratch_ / "a.txt.zst", "this is no zstd");
  EXPECT_THAT(error_of([&] { (void)texts(sources({scratch_.path()})); }, ErrorCode::corrupt_data),
              HasSubstr("no whole zstd stream"));
}

}  // namespace
}  // namespace hadal::test
