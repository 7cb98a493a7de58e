"""What a program may name: a list that is finished, instead of one of what is forbidden, which never is.

The attributes are the public ones of the classes of `CADQUERY` and of their instances, as of CadQuery 2.8, without
those that touch files or hand out objects of the geometry kernel below. A test derives them again from the installed
classes, and another crawls all that can be reached through them.
"""

# Classes of `cadquery`; no module, hence no `exporters`, `importers`, `occ_impl`, `utils`.
CADQUERY = tuple(
    "Assembly BoundBox Color Compound Edge Face Location Matrix Plane Shape Shell Sketch Solid Vector Vertex Wire "
    "Workplane sortWiresByBuildOrder".split()
)
SELECTORS = tuple(
    "AndSelector AreaNthSelector BoxSelector CenterNthSelector DirectionMinMaxSelector DirectionNthSelector "
    "DirectionSelector InverseSelector LengthNthSelector NearestToPointSelector ParallelDirSelector "
    "PerpendicularDirSelector RadiusNthSelector Selector StringSyntaxSelector SubtractSelector SumSelector "
    "TypeSelector".split()
)
BUILTINS = tuple(
    "abs all any bool dict divmod enumerate filter float int isinstance len list map max min ord chr pow print range "
    "reversed round set slice sorted str sum tuple zip True False None ArithmeticError AssertionError Exception "
    "IndexError KeyError RuntimeError TypeError ValueError ZeroDivisionError".split()
)
MATH = tuple(
    "acos acosh asin asinh atan atan2 atanh cbrt ceil comb copysign cos cosh degrees dist e exp exp2 expm1 fabs "
    "factorial floor fmod frexp fsum gamma gcd hypot inf isclose isfinite isinf isnan isqrt lcm ldexp lgamma log log10 "
    "log1p log2 modf nan nextafter perm pi pow prod radians remainder sin sinh sqrt tan tanh tau trunc ulp".split()
)
# Of numbers, texts, lists, sets and dictionaries. Not `format`: its fields can name any attribute.
PLAIN = tuple(
    "append capitalize clear count difference discard endswith get imag index insert intersection is_integer items "
    "join keys lower lstrip pop real rstrip setdefault startswith strip title update upper values zfill".split()
)
CLASSES = tuple(
    """
    add addCavity addHole addSubshape all ancestors apply arc arcCenter Area assemble assembleEdges back bezier bottom
    BoundingBox bounds box cboreHole Center center CenterOfBoundBox centerOfMass chamfer chamfer2D children circle clean
    close Closed cluster color combine CombinedCenter CombinedCenterOfBoundBox Compounds compounds CompSolids
    computeMass consolidateWires constrain constraints constructOn copy copyWorkplane cross cskHole ctx curvatureAt
    curvatures cut cutBlind cutEach cutThruAll cylinder delete DiagonalLength distance distances distanceToLine
    distanceToPlane distribute dot dprism each eachpoint edge Edges edges ellipse ellipseArc end endPoint enlarge extend
    extrude extrudeLinear extrudeLinearWithRotation face faces Faces facesIntersectedByLine fG fillet fillet2D filter
    filterResults finalize findOutsideBox2D findSolid first firstPoint fix forConstruction front fuse geomType getAngle
    getSignedAngle hasPCurve hLine hLineTo hole hollow hull innerShells innerWires interpPlate intersect inverse invoke
    IsClosed isEqual isInside isNull isoline isolines isSame isSolid isValid item largestDimension last left Length line
    lineTo loc locate located location locationAt locations locs loft makeBezier makeBox makeCircle makeCompound
    makeCone makeCylinder makeEllipse makeFromWires makeHelix makeLine makeLoft makeNSidedSurface makePlane makePolygon
    makeRuledSurface makeShell makeSolid makeSphere makeSpline makeSplineApprox makeTangentArc makeText
    makeThreePointArc makeTorus makeVertex makeWedge map matrixOfInertia mesh mirror mirrorInPlane mirrorX mirrorY move
    moved moveTo multiply name named newObject normal normalAt normalized normals obj objects offset offset2D origin
    outerShell outerWire paramAt parametricCurve parametricSurface params paramsLength parent parray pendingEdges
    pendingWires placeSketch plane polarArray polarLine polarLineTo polygon polyline positionAt positions project
    projectToLine projectToPlane push pushPoints radius radiusArc rarray rect regularPolygon remove replace reset
    reverse revolve rG right rotate rotateAboutCenter rotated rotateX rotateY rotateZ sagittaArc sample scale section
    segment select setOrigin2d shapes ShapeType shell shells Shells siblings size sketch slot slot2D solid solids Solids
    solve sort sphere spline splineApprox split startPoint stitch sub subtract sweep sweep_multi tag tags
    tangentArcPoint tangentAt tangents tessellate text thicken threePointArc toArcs toCompound tolerance toLocalCoords
    toLocs toNURBS top toPending toSplines toTuple toWorldCoords transform transformed transformGeometry transformShape
    translate transposed_list trapezoid traverse trim twistExtrude union uvBounds val vals vertex Vertices vertices
    vLine vLineTo Volume wedge wire Wires wires workplane workplaneFromTagged x xDir xlen xmax xmin XY XZ y yDir ylen
    ymax ymin YX YZ z zDir zlen zmax zmin ZX ZY
    """.split()
)
KEPT_BACK = tuple(
    # files
    "export exportBin exportBrep exportStep exportStl exportSvg importBin importBrep importDXF importStep load save "
    "toSvg "
    # objects of the geometry kernel and of the viewer
    "cast hashCode lcs toDir toOCC toPln toPnt toVtkPolyData wrapped "
    # of no use to a part
    "key label material metadata popPendingEdges popPendingWires test".split()
)
ATTRIBUTES = frozenset((*CADQUERY, *SELECTORS, "selectors", *MATH, *PLAIN, *CLASSES))
