# The few commands that a person types. CMake does the work; see CMakePresets.json.
#
#   make chat                             install what is missing, build, talk to the embedded model
#   make chat ARGS='-p "What is 12 * 37?"'    answer once and exit
#   make test                             install, build twice (release, ASan+UBSan), run every test
#   make format | format-check | tidy     clang-format-19, clang-tidy-19
#   make clean                            remove all build folders

.PHONY: chat build test format format-check tidy clean
.DEFAULT_GOAL := build

# `exec`: Ctrl-C reaches the chat alone, which stops its answer; no shell in between dies of it.
chat: build
	@exec build/hadal chat $(ARGS)

# What is printed goes to stderr, so that stdout holds the chat and nothing else. A build folder
# that is configured already keeps its configuration; ninja notices when that is out of date.
build:
	@scripts/install_dependencies.sh build >&2
	@test -f build/build.ninja || cmake --preset chat >&2
	@cmake --build build --target hadal >&2

test:
	@scripts/test.sh

format:
	@scripts/format.sh

format-check:
	@scripts/format.sh --check

tidy:
	@scripts/tidy.sh

clean:
	rm -rf build build-asan build-debug build-fuzz build-tsan
