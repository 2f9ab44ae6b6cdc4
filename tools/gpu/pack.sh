#!/bin/bash
# Builds with CUDA=1 and puts what a machine with a GPU needs into build-gpu/: programs, the shared
# libraries that are not part of the C library, fixtures. tools/gpu/run.sh runs it there, with no
# compiler and no packages. Usage: [SHARED=../shared] tools/gpu/pack.sh [--no-build]
set -eu -o pipefail
cd "$(dirname "$0")/../.."
shared=${SHARED:-../shared}
to=build-gpu
most_mb=60

[ "${1:-}" = --no-build ] ||
    make -s -j"${JOBS:-2}" CUDA=1 BUILD=build-cuda build-cuda/rwkv \
        build-cuda/tests/{check_ops,test_backend,test_decoder,test_dist,test_infer,test_init,test_model,test_vectors_ops}

rm -rf $to
mkdir -p $to/bin $to/lib $to/shared/vectors $to/shared/data
for program in rwkv tests/{check_ops,test_backend,test_decoder,test_dist,test_infer,test_init,test_model,test_vectors_ops}; do
    strip -o "$to/bin/$(basename $program)" build-cuda/$program
done
# The C library is that machine's own: it is newer, and the driver's libraries want it.
ldd $to/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libgcc_s|libstdc\+\+)\.so' |
    while read -r lib; do cp -L "$lib" $to/lib/; done

# Of the vectors what the tests read; the byte model packed, 54 MB otherwise.
if [ -d "$shared/vectors" ]; then
    cp "$shared"/vectors/*.safetensors "$shared"/vectors/misc.json $to/shared/vectors/
    for dir in h1-rand h1-init n16-rand; do
        mkdir $to/shared/vectors/$dir
        cp "$shared/vectors/$dir"/{vectors.json,grads.safetensors,state.safetensors} $to/shared/vectors/$dir/
    done
    cp "$shared"/vectors/h1-rand/w_fp32.safetensors $to/shared/vectors/h1-rand/
    cp "$shared"/vectors/h1-init/w_bf16_shared.pth $to/shared/vectors/h1-init/
    cp "$shared"/vectors/n16-rand/w_bf16.pth $to/shared/vectors/n16-rand/
    cp -r "$shared"/vectors/reverse $to/shared/vectors/
else
    echo "SKIP vectors: $shared/vectors is absent"
fi
if [ -e "$shared/data/bytes28m.pth" ]; then
    cp "$shared"/data/bytes28m_vectors.json $to/shared/data/
    xz -T"${JOBS:-2}" -3 -c "$shared"/data/bytes28m.pth >$to/shared/data/bytes28m.pth.xz
fi
# Kernels of three architectures in seven programs shrink well where one is seen beside the other.
tar -C $to -c bin lib | xz --lzma2=preset=6,dict=256MiB >$to/bin.tar.xz && rm -r $to/bin $to/lib
mb=$(du -sm $to | cut -f1)
echo "$to: $mb MB of at most $most_mb"
[ "$mb" -le $most_mb ]
