// journal: the token-granular write-ahead log. Every request, every drawn token and every finish is
// in it before anyone sees them, so a crash is the same event as a preemption. Plain data of its
// own: it knows no engine, no prompt format and no HTTP.
//
// This file: what the records say.  Source: serving.md §5.6; byte by byte: docs/formats/journal.md.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/digest.h"
#include "core/token.h"

namespace hadal::journal {

// A number of a stream within one log; never used twice. 0 is none.
using LocalId = std::uint32_t;
// Counts records from 1, without gaps.
using Lsn = std::uint64_t;

enum class RecordType : std::uint8_t { open = 1, step, snap, close, cancel, table };
[[nodiscard]] const char* to_string(RecordType type);  // "OPEN", ...; "?" for none of them

// Flags of a record.
inline constexpr std::uint8_t kCommitContinues = 1;  // the next record belongs to the same commit
inline constexpr std::uint8_t kCopy = 2;             // says again what older segments say

inline constexpr std::size_t kMaxNameBytes = 128;

// A request, as it was when it was admitted.
struct OpenRecord {
  LocalId local = 0;  // the writer's to set
  std::string name;   // 1 to kMaxNameBytes bytes, unique among the streams kept
  std::string api;    // "chat.completions", ...: who can read `request`
  std::string response_id;
  std::array<std::byte, 16> nonce{};
  std::int64_t created = 0;  // unix seconds
  std::uint32_t n_choices = 1;
  std::uint64_t seed = 0;
  bool resumable = false;      // outlives its client and a restart
  bool keep_logprobs = false;  // tokens carry theirs in the log
  std::string principal;       // whose request: the cache domain
  Sha256Digest request_sha256{};
  Sha256Digest fingerprint{};  // of the model and numerics that draw
  std::string fingerprint_text;
  std::vector<TokenId> prompt;
  std::string request;  // the raw body

  bool operator==(const OpenRecord&) const = default;
};

struct TopEntry {
  TokenId token = 0;
  float logprob = 0;
  bool operator==(const TopEntry&) const = default;
};

// One drawn token.
struct TokenEntry {
  LocalId local = 0;
  std::uint16_t choice = 0;
  bool is_stop_token = false;
  std::uint32_t index = 0;  // output index within the choice
  TokenId token = 0;
  std::optional<float> logprob = {};
  std::vector<TopEntry> top = {};
  bool operator==(const TokenEntry&) const = default;
};

struct StepRecord {
  std::vector<TokenEntry> tokens;
  bool operator==(const StepRecord&) const = default;
};

struct SnapRecord {
  LocalId local = 0;
  std::uint64_t position = 0;  // tokens of prompt and output that the snapshot covers
  std::string file = {};
  std::uint32_t checksum = 0;
  bool operator==(const SnapRecord&) const = default;
};

enum class CloseReason : std::uint8_t { stop = 1, length, cancelled, error };
[[nodiscard]] const char* to_string(CloseReason reason);

struct CloseRecord {
  LocalId local = 0;
  std::uint16_t choice = 0;
  CloseReason reason = CloseReason::stop;
  std::uint32_t n_tokens = 0;
  std::int64_t closed = 0;       // unix seconds
  Sha256Digest tokens_sha256{};  // of the choice's token ids, u32 each
  std::string detail = {};       // a sentence, when reason is error
  bool operator==(const CloseRecord&) const = default;
};

// The client wants no more; CLOSE records of the open choices follow, sooner or later.
struct CancelRecord {
  LocalId local = 0;
  std::string reason = {};
  bool operator==(const CancelRecord&) const = default;
};

// Written when a segment begins: the streams that are open then.
struct TableRecord {
  struct Entry {
    LocalId local = 0;
    std::string name = {};
    std::vector<std::uint32_t> n_tokens = {};  // by choice
    bool operator==(const Entry&) const = default;
  };
  std::vector<Entry> streams = {};
  bool operator==(const TableRecord&) const = default;
};

// Payloads. Decoding throws corrupt_data, naming the record's type, when the bytes are not exactly
// one such payload.
[[nodiscard]] std::vector<std::byte> encode(const OpenRecord& record);  // packs prompt and request
[[nodiscard]] std::vector<std::byte> encode(const StepRecord& record);
[[nodiscard]] std::vector<std::byte> encode(const SnapRecord& record);
[[nodiscard]] std::vector<std::byte> encode(const CloseRecord& record);
[[nodiscard]] std::vector<std::byte> encode(const CancelRecord& record);
[[nodiscard]] std::vector<std::byte> encode(const TableRecord& record);
// Gives an encoded OPEN its number.
void set_local(std::span<std::byte> open_payload, LocalId local);
[[nodiscard]] OpenRecord decode_open(std::span<const std::byte> payload);
[[nodiscard]] StepRecord decode_step(std::span<const std::byte> payload);
[[nodiscard]] SnapRecord decode_snap(std::span<const std::byte> payload);
[[nodiscard]] CloseRecord decode_close(std::span<const std::byte> payload);
[[nodiscard]] CancelRecord decode_cancel(std::span<const std::byte> payload);
[[nodiscard]] TableRecord decode_table(std::span<const std::byte> payload);

// The digest that a CLOSE carries.
[[nodiscard]] Sha256Digest digest_of(std::span<const TokenId> tokens);

// What must be equal for a continuation to be the uninterrupted one, bit for bit: names and values
// of the model's identity, the numerics, the build.
[[nodiscard]] Sha256Digest fingerprint(std::span<const std::string> parts);

}  // namespace hadal::journal
