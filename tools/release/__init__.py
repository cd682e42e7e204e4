"""Makes a release: `make release VERSION=…`. Only this folder and tests/cluster, which builds the images, know how.

__main__           the commands: build, verify, version
build              one release, from a tagged commit to a folder
checks             what must hold before anything is built
versions           the places that have the version
images             the two images: built, labelled, archived
chart              the chart as a package that pins the images
python_packages    wheel and sdist
oci                images as files
installed, sbom    what is in an image or the wheel, as CycloneDX
provenance         checksums, provenance, signatures
"""
