# rwkv: pretrain RWKV-7 language models and write with them.
#
#   make            build ./rwkv
#   make demo       install what is missing, build, pretrain a small model, write with it
#   make test       unit, model and command-line tests
#   make check      the tests again under ASan+UBSan, the thread tests under TSan, and the layering
#   make fuzz       every fuzz target for FUZZ_SECONDS each (60)
#   make fmt        clang-format over the tree      make sizes   the longest files and functions
#   make vocab      fetch the World vocabulary      make install PREFIX=/usr/local
#
# Options: CC=clang  BUILD=dir  SAN=address,undefined  WERROR=1
#          CUDA=1 adds the CUDA backend (nvcc 12.8 or later, found in CUDA_HOME or the PATH);
#          CUDA=emu builds its kernels for the processor, to check them without a GPU.
#          WGPU=1 is reserved for the WebGPU backend and refused until it exists.

MAKEFLAGS += --no-builtin-rules

CC      ?= cc
BUILD   ?= build
PREFIX  ?= /usr/local
FUZZ_SECONDS ?= 60

ifneq ($(WGPU),)
$(error WGPU=1 names a backend that is not built yet; plain `make` builds the CPU backend)
endif
ifneq ($(filter-out 0 1 emu,$(CUDA)),)
$(error CUDA=$(CUDA): 1 builds the CUDA backend, emu builds its kernels for the processor)
endif

WARN    := -Wall -Wextra -Wpedantic -Wshadow $(if $(WERROR),-Werror)
OPT     ?= -O2 -g
CPPFLAGS += -Isrc -D_GNU_SOURCE
CFLAGS  += -std=c11 $(OPT) $(WARN) -fno-strict-overflow -pthread
LDLIBS  += -ljansson -lxxhash -luv -lm -pthread

# llhttp: the system's library if it has one, else the sources that ./setup.sh takes out of Debian's
# package node-llhttp into deps/llhttp.
ifeq ($(shell pkg-config --exists libllhttp 2>/dev/null && echo yes),yes)
CPPFLAGS += $(shell pkg-config --cflags libllhttp)
LDLIBS  += $(shell pkg-config --libs libllhttp)
else
CPPFLAGS += -isystem deps/llhttp
LLHTTP_OBJ := $(BUILD)/deps/llhttp/llhttp.o $(BUILD)/deps/llhttp/api.o $(BUILD)/deps/llhttp/http.o
endif
ifdef SAN
CFLAGS  += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=undefined
LDFLAGS += -fsanitize=$(SAN)
endif

ARCH    := $(shell $(CC) -dumpmachine 2>/dev/null | cut -d- -f1)
SRC     := $(filter-out src/backend/ref/ref.c src/backend/cuda/%,$(wildcard src/*/*.c src/backend/*/*.c)) \
           src/backend/cpu/kernels/pick.c
LIB_OBJ := $(SRC:%.c=$(BUILD)/%.o)

# The CUDA backend: C that knows tensors, and kernels that know addresses. The runtime is linked in
# and looks for the driver itself; cuBLASLt is loaded when a device is opened.
ifneq ($(filter 1 emu,$(CUDA)),)
CUDA_SRC := $(wildcard src/backend/cuda/*.cu)
LIB_OBJ  += $(patsubst %.c,$(BUILD)/%.o,$(wildcard src/backend/cuda/*.c)) $(CUDA_SRC:%.cu=$(BUILD)/%.cu.o)
CPPFLAGS += -DHAVE_CUDA
endif
ifeq ($(CUDA),1)
NVCC      ?= $(or $(shell command -v nvcc),$(CUDA_HOME)/bin/nvcc,nvcc)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_ARCHS ?= 80 90a 120
CPPFLAGS  += -isystem $(CUDA_HOME)/include
LDLIBS    += $(firstword $(wildcard $(CUDA_HOME)/lib64/libcudart_static.a $(CUDA_HOME)/lib/libcudart_static.a)) \
             -ldl -lrt -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic
NVCCFLAGS ?= -O3 -std=c++17 $(foreach a,$(CUDA_ARCHS),-gencode=arch=compute_$(a),code=sm_$(a)) \
             -Xcompiler=-Wall,-Wextra,-Wshadow $(if $(WERROR),-Xcompiler=-Werror -Werror=all-warnings)
endif
ifeq ($(CUDA),emu)
CXX      ?= c++
CPPFLAGS += -DCUDA_EMU -Itests/cuda_emu
LIB_OBJ  += $(BUILD)/tests/cuda_emu/cuda_emu.o
LDLIBS   += -lstdc++
LDFLAGS  += -rdynamic
endif

# The reference is one text compiled for float and for double: finite differences need the double.
LIB_OBJ += $(BUILD)/src/backend/ref/ref_f32.o $(BUILD)/src/backend/ref/ref_f64.o
# The kernels are one text compiled for each level of the instruction set, chosen at run time.
ifeq ($(ARCH),x86_64)
ISA_LEVELS := v1 v3 v4 bf16
else
ISA_LEVELS := v1
endif
ISA_v3  := -march=x86-64-v3
ISA_v4  := -march=x86-64-v4 -mprefer-vector-width=512
ISA_bf16 := $(ISA_v4) -mavx512bf16 -mavx512vnni
KERNELS := gemm integer pack rows wkv7
# The last level differs in products only.
LIB_OBJ += $(foreach k,gemm integer,$(ISA_LEVELS:%=$(BUILD)/src/backend/cpu/kernels/$(k)_%.o)) \
           $(foreach k,pack rows wkv7,$(patsubst %,$(BUILD)/src/backend/cpu/kernels/$(k)_%.o,$(filter-out bf16,$(ISA_LEVELS))))

LIB_OBJ += $(LLHTTP_OBJ) $(BUILD)/web.o

CMD_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/*.c cmd/bench/*.c))
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
CHECK_OPS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/check_ops*.c))
FUZZERS := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

.PHONY: all test run-tests check fuzz fmt sizes vocab install clean demo layering

# Only the plain build leaves ./rwkv: a build with sanitizers must not take its place.
all: $(if $(filter build,$(BUILD)),rwkv,$(BUILD)/rwkv)

rwkv: $(BUILD)/rwkv
	@cp -f $< $@

$(BUILD)/rwkv: $(CMD_OBJ) $(BUILD)/librwkv.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/librwkv.a: $(LIB_OBJ)
	@rm -f $@
	@ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

ifeq ($(CUDA),1)
$(BUILD)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -Isrc/backend/cuda -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
else
EMU_FLAGS = -std=c++17 $(OPT) -Wall -Wextra -Wno-unknown-pragmas $(if $(WERROR),-Werror) -ffp-contract=off $(if $(SAN),-fsanitize=$(SAN))
$(BUILD)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(EMU_FLAGS) -Isrc/backend/cuda -MMD -MP -MF $(@:.o=.d) -c -x c++ -o $@ $<
# NCCL's part between emulated devices: processes find it with LD_LIBRARY_PATH=$(BUILD).
$(BUILD)/libnccl.so.2: tests/cuda_emu/nccl.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -shared -fPIC -o $@ $<
$(BUILD)/tests/cuda_emu/%.o: tests/cuda_emu/%.cc
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(EMU_FLAGS) -MMD -MP -c -o $@ $<
endif

# The chat page goes into the program as an array of bytes.
$(BUILD)/web.c: src/serve/web/index.html
	@mkdir -p $(@D)
	@{ echo '#include <stddef.h>'; echo 'extern const char web_index[]; extern const size_t web_index_len;'; \
	   echo 'const char web_index[] = {'; od -An -v -td1 $< | sed 's/\(-*[0-9][0-9]*\)/\1,/g'; echo '};'; \
	   echo 'const size_t web_index_len = sizeof web_index;'; } > $@

$(BUILD)/web.o: $(BUILD)/web.c
	$(CC) $(CFLAGS) -c -o $@ $<

$(BUILD)/deps/llhttp/%.o: deps/llhttp/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(OPT) $(if $(SAN),-fsanitize=$(SAN)) -w -c -o $@ $<

# Asked for before anything is compiled, so that its absence is the first thing said.
$(LIB_OBJ) $(CMD_OBJ): | $(if $(LLHTTP_OBJ),deps/llhttp/llhttp.h)
deps/llhttp/%:
	@echo "deps/llhttp is missing: run ./setup.sh demo, which takes it out of Debian's package" >&2
	@false

$(BUILD)/src/backend/ref/ref_%.o: src/backend/ref/ref.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -ffp-contract=off -DREF_$* -MMD -MP -c -o $@ $<

# -O3 and contraction to FMA belong here and nowhere else; never -ffast-math.
define KERNEL_RULE
$(BUILD)/src/backend/cpu/kernels/$(1)_%.o: src/backend/cpu/kernels/$(1).c
	@mkdir -p $$(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -O3 -ffp-contract=fast -fno-math-errno $$(ISA_$$*) \
	    -DKERNEL_LEVEL=$$* -MMD -MP -c -o $$@ $$<
endef
$(foreach k,$(KERNELS),$(eval $(call KERNEL_RULE,$(k))))

# The doors as a library: tests of the command line and of the configuration link it too.
$(BUILD)/libcmd.a: $(filter-out $(BUILD)/cmd/main.o,$(CMD_OBJ))
	@rm -f $@
	@ar rcs $@ $^

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libcmd.a $(BUILD)/librwkv.a
	$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

# The server in front of an engine that is none: what links this needs no model.
$(BUILD)/tests/test_serve: $(BUILD)/tests/test_serve.o $(BUILD)/tests/fake_engine.o $(BUILD)/librwkv.a
	$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

$(BUILD)/tests/check_ops: $(CHECK_OPS) $(BUILD)/librwkv.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Like `make demo`, installs what is missing; then make looks again at what there is.
test:
	@for need in stddef stdarg stdint setjmp cmocka; do echo "#include <$$need.h>"; done | \
	    $(CC) $(CPPFLAGS) -fsyntax-only -xc - 2>/dev/null || ./setup.sh test
	@$(MAKE) --no-print-directory run-tests

run-tests: all $(TESTS) $(if $(CHECK_OPS),$(BUILD)/tests/check_ops)
	@BUILD=$(BUILD) tests/run.sh $(NAMES)

check:
	@tests/check.sh

layering:
	@tools/layering.sh

fuzz:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/run.sh $(FUZZERS)

# Needs CC=clang SAN=fuzzer-no-link,…: tests/fuzz/run.sh says so.
$(BUILD)/fuzz/%: $(BUILD)/tests/fuzz/%.o $(BUILD)/libcmd.a $(BUILD)/librwkv.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

demo:
	@tools/demo.sh

vocab:
	@tools/vocab.sh

fmt:
	@clang-format -i $$(git ls-files '*.c' '*.h')

sizes:
	@tools/sizes.sh

install: $(BUILD)/rwkv
	install -D $< $(DESTDIR)$(PREFIX)/bin/rwkv

clean:
	rm -rf build build-* rwkv

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
