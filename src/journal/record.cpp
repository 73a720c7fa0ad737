#include "journal/record.h"

#include <fmt/format.h>
#include <zstd.h>

#include <limits>

#include "core/error.h"
#include "journal/payload.h"

namespace hadal::journal {

namespace {

// Bits of a token's flags.
constexpr std::uint16_t kStopToken = 1, kHasLogprob = 2, kHasTop = 4;
// Bits of OPEN's flags.
constexpr std::uint32_t kResumable = 1, kKeepLogprobs = 2;
// A request body of the largest size, and room to grow.
constexpr std::uint32_t kMaxPackedBytes = 256u << 20;

[[noreturn]] void refuse(RecordType type, std::string_view why) {
  throw Error(ErrorCode::corrupt_data,
              fmt::format("a {} record's payload is malformed: {}", to_string(type), why));
}

void require_done(const PayloadReader& in, RecordType type) {
  if (!in.done()) {
    refuse(type, in.ok() ? fmt::format("{} bytes too many", in.remaining()) : "it ends too early");
  }
}

// u32 plain size, u32 stored size, the bytes: a zstd frame, or as they are when the sizes agree.
void put_packed(PayloadWriter& out, std::span<const std::byte> plain) {
  if (plain.size() > kMaxPackedBytes) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("a request of {} bytes is too large for the journal, which takes {}",
                            plain.size(), kMaxPackedBytes));
  }
  out.put(static_cast<std::uint32_t>(plain.size()));
  Bytes packed(ZSTD_compressBound(plain.size()));
  const std::size_t n =
      ZSTD_compress(packed.data(), packed.size(), plain.data(), plain.size(), /*level=*/1);
  const bool smaller = ZSTD_isError(n) == 0 && n < plain.size();
  const auto stored = smaller ? std::span<const std::byte>(packed).first(n) : plain;
  out.put(static_cast<std::uint32_t>(stored.size()));
  out.raw(stored);
}

// Leaves `into` with the plain bytes; T is char or TokenId.
template <class Container>
void get_packed(PayloadReader& in, Container& into) {
  using T = typename Container::value_type;
  const auto plain_size = in.get<std::uint32_t>(), stored_size = in.get<std::uint32_t>();
  const auto stored = in.raw(stored_size);
  if (!in.ok() || plain_size > kMaxPackedBytes || stored_size > plain_size ||
      plain_size % sizeof(T) != 0) {
    return in.fail();
  }
  // Compressed data says its own size; a lie must not allocate.
  if (stored_size != plain_size &&
      ZSTD_getFrameContentSize(stored.data(), stored.size()) != plain_size) {
    return in.fail();
  }
  into.resize(plain_size / sizeof(T));
  if (stored_size == plain_size) {
    if (plain_size > 0) std::memcpy(into.data(), stored.data(), plain_size);
  } else if (ZSTD_decompress(into.data(), plain_size, stored.data(), stored.size()) != plain_size) {
    in.fail();
  }
}

}  // namespace

const char* to_string(RecordType type) {
  switch (type) {
    case RecordType::open:
      return "OPEN";
    case RecordType::step:
      return "STEP";
    case RecordType::snap:
      return "SNAP";
    case RecordType::close:
      return "CLOSE";
    case RecordType::cancel:
      return "CANCEL";
    case RecordType::table:
      return "TABLE";
  }
  return "?";
}

const char* to_string(CloseReason reason) {
  switch (reason) {
    case CloseReason::stop:
      return "stop";
    case CloseReason::length:
      return "length";
    case CloseReason::cancelled:
      return "cancelled";
    case CloseReason::error:
      return "error";
  }
  return "?";
}

Bytes encode(const OpenRecord& record) {
  PayloadWriter out;
  out.put(record.local);
  out.put(record.n_choices);
  out.put((record.resumable ? kResumable : 0) | (record.keep_logprobs ? kKeepLogprobs : 0));
  out.put(std::uint32_t{0});
  out.put(record.seed);
  out.put(record.created);
  out.raw(record.nonce);
  out.raw(record.request_sha256);
  out.raw(record.fingerprint);
  for (const std::string* text : {&record.name, &record.api, &record.response_id, &record.principal,
                                  &record.fingerprint_text}) {
    out.text(*text);
  }
  put_packed(out, std::as_bytes(std::span(record.prompt)));
  put_packed(out, std::as_bytes(std::span(record.request)));
  return out.take();
}

void set_local(std::span<std::byte> open_payload, LocalId local) {
  std::memcpy(open_payload.data(), &local, sizeof local);  // its first field
}

OpenRecord decode_open(std::span<const std::byte> payload) {
  PayloadReader in(payload);
  OpenRecord record;
  record.local = in.get<LocalId>();
  record.n_choices = in.get<std::uint32_t>();
  const auto flags = in.get<std::uint32_t>();
  record.resumable = (flags & kResumable) != 0;
  record.keep_logprobs = (flags & kKeepLogprobs) != 0;
  (void)in.get<std::uint32_t>();
  record.seed = in.get<std::uint64_t>();
  record.created = in.get<std::int64_t>();
  in.raw_into(record.nonce);
  in.raw_into(record.request_sha256);
  in.raw_into(record.fingerprint);
  for (std::string* text : {&record.name, &record.api, &record.response_id, &record.principal,
                            &record.fingerprint_text}) {
    *text = in.text();
  }
  get_packed(in, record.prompt);
  get_packed(in, record.request);
  require_done(in, RecordType::open);
  if (record.local == 0) refuse(RecordType::open, "stream number 0");
  if (record.name.empty() || record.name.size() > kMaxNameBytes) {
    refuse(RecordType::open, fmt::format("a name of {} bytes", record.name.size()));
  }
  if (record.n_choices == 0 || record.n_choices > std::numeric_limits<std::uint16_t>::max()) {
    refuse(RecordType::open, fmt::format("{} choices", record.n_choices));
  }
  return record;
}

Bytes encode(const StepRecord& record) {
  PayloadWriter out;
  out.put(static_cast<std::uint32_t>(record.tokens.size()));
  for (const TokenEntry& entry : record.tokens) {
    std::uint16_t flags = entry.is_stop_token ? kStopToken : 0;
    if (entry.logprob) flags |= kHasLogprob;
    if (!entry.top.empty()) flags |= kHasTop;
    out.put(entry.local);
    out.put(entry.choice);
    out.put(flags);
    out.put(entry.index);
    out.put(entry.token);
    if (entry.logprob) out.put(*entry.logprob);
    if (entry.top.empty()) continue;
    out.put(static_cast<std::uint32_t>(entry.top.size()));
    for (const TopEntry& top : entry.top) {
      out.put(top.token);
      out.put(top.logprob);
    }
  }
  return out.take();
}

StepRecord decode_step(std::span<const std::byte> payload) {
  PayloadReader in(payload);
  StepRecord record;
  const auto count = in.get<std::uint32_t>();
  constexpr std::size_t kEntryBytes = 16, kTopBytes = 8;
  if (count > in.remaining() / kEntryBytes) in.fail();
  if (in.ok()) record.tokens.reserve(count);
  for (std::uint32_t i = 0; i < count && in.ok(); ++i) {
    TokenEntry& entry = record.tokens.emplace_back();
    entry.local = in.get<LocalId>();
    entry.choice = in.get<std::uint16_t>();
    const auto flags = in.get<std::uint16_t>();
    entry.is_stop_token = (flags & kStopToken) != 0;
    entry.index = in.get<std::uint32_t>();
    entry.token = in.get<TokenId>();
    if ((flags & kHasLogprob) != 0) entry.logprob = in.get<float>();
    if ((flags & ~(kStopToken | kHasLogprob | kHasTop)) != 0) {
      refuse(RecordType::step, fmt::format("token flags {:#x}", flags));
    }
    if ((flags & kHasTop) == 0) continue;
    const auto n_top = in.get<std::uint32_t>();
    if (n_top > in.remaining() / kTopBytes) in.fail();
    for (std::uint32_t k = 0; k < n_top && in.ok(); ++k) {
      const auto token = in.get<TokenId>();
      entry.top.push_back({token, in.get<float>()});
    }
  }
  require_done(in, RecordType::step);
  return record;
}

Bytes encode(const SnapRecord& record) {
  PayloadWriter out;
  out.put(record.local);
  out.put(record.checksum);
  out.put(record.position);
  out.text(record.file);
  return out.take();
}

SnapRecord decode_snap(std::span<const std::byte> payload) {
  PayloadReader in(payload);
  SnapRecord record;
  record.local = in.get<LocalId>();
  record.checksum = in.get<std::uint32_t>();
  record.position = in.get<std::uint64_t>();
  record.file = in.text();
  require_done(in, RecordType::snap);
  return record;
}

Bytes encode(const CloseRecord& record) {
  PayloadWriter out;
  out.put(record.local);
  out.put(record.choice);
  out.put(static_cast<std::uint16_t>(record.reason));
  out.put(record.n_tokens);
  out.put(std::uint32_t{0});
  out.put(record.closed);
  out.raw(record.tokens_sha256);
  out.text(record.detail);
  return out.take();
}

CloseRecord decode_close(std::span<const std::byte> payload) {
  PayloadReader in(payload);
  CloseRecord record;
  record.local = in.get<LocalId>();
  record.choice = in.get<std::uint16_t>();
  const auto reason = in.get<std::uint16_t>();
  record.n_tokens = in.get<std::uint32_t>();
  (void)in.get<std::uint32_t>();
  record.closed = in.get<std::int64_t>();
  in.raw_into(record.tokens_sha256);
  record.detail = in.text();
  require_done(in, RecordType::close);
  if (reason < 1 || reason > static_cast<std::uint16_t>(CloseReason::error)) {
    refuse(RecordType::close, fmt::format("reason {}", reason));
  }
  record.reason = static_cast<CloseReason>(reason);
  return record;
}

Bytes encode(const CancelRecord& record) {
  PayloadWriter out;
  out.put(record.local);
  out.text(record.reason);
  return out.take();
}

CancelRecord decode_cancel(std::span<const std::byte> payload) {
  PayloadReader in(payload);
  CancelRecord record;
  record.local = in.get<LocalId>();
  record.reason = in.text();
  require_done(in, RecordType::cancel);
  return record;
}

Bytes encode(const TableRecord& record) {
  PayloadWriter out;
  out.put(static_cast<std::uint32_t>(record.streams.size()));
  for (const TableRecord::Entry& entry : record.streams) {
    out.put(entry.local);
    out.text(entry.name);
    out.put(static_cast<std::uint32_t>(entry.n_tokens.size()));
    for (const std::uint32_t n : entry.n_tokens) out.put(n);
  }
  return out.take();
}

TableRecord decode_table(std::span<const std::byte> payload) {
  PayloadReader in(payload);
  TableRecord record;
  const auto count = in.get<std::uint32_t>();
  for (std::uint32_t i = 0; i < count && in.ok(); ++i) {
    TableRecord::Entry& entry = record.streams.emplace_back();
    entry.local = in.get<LocalId>();
    entry.name = in.text();
    const auto n_choices = in.get<std::uint32_t>();
    if (n_choices > in.remaining() / sizeof(std::uint32_t)) in.fail();
    for (std::uint32_t c = 0; c < n_choices && in.ok(); ++c) {
      entry.n_tokens.push_back(in.get<std::uint32_t>());
    }
  }
  require_done(in, RecordType::table);
  return record;
}

Sha256Digest digest_of(std::span<const TokenId> tokens) {
  return sha256(std::as_bytes(tokens));
}

Sha256Digest fingerprint(std::span<const std::string> parts) {
  // Lengths go in too, so that no two lists run together.
  PayloadWriter out;
  for (const std::string& part : parts) out.text(part);
  return sha256(out.take());
}

}  // namespace hadal::journal
